"""Execution on Dask workers, local or on a cluster."""
