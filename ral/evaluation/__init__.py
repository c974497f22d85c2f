"""Metrics with intervals from logits and labels; no GPU, no model."""
