"""The schema of params.yaml, one file per part of the pipeline, so that a step depends on no more than it reads."""
