"""Readers of data sets as their owners ship them; each yields the one table that the pipeline works on."""
