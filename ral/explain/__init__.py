"""Explanations: heat maps, the most informative hits and errors, and the geometry of the classifier."""
