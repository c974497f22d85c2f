"""Robustness audit: how results and decisions of a model change when its input is changed."""
