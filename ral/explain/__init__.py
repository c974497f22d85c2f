"""What a trained network looked at, which films it got wrong, and the geometry of its classifier."""
