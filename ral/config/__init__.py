"""Schema of params.yaml: one module per part of the pipeline, so that a step depends only on what it reads."""
