"""Readers of published data sets in their original layout; each provides the table that the pipeline works on."""
