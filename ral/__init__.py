"""Chest X-ray classification with long-tailed findings: data, losses, training, evaluation, reporting."""
