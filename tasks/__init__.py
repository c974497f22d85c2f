"""The steps of the pipeline: `python -m tasks.<step>`; parameters and files in, files out."""
