"""Training with DeepSpeed; `python -m ral.training` is one process of it."""
