"""Metrics with confidence intervals from logits and labels; needs no GPU and no model."""
