"""Which loss helps on real images: the trainings, and the page of their results."""
