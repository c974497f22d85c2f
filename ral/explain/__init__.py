"""What a trained network looked at, which images it got wrong, and the geometry of its classifier."""
