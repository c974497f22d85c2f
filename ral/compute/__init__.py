"""Where work runs: Dask's workers, here or on a cluster."""
