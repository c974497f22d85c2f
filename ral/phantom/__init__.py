"""Synthetic chest images in the layout of NIH ChestX-ray14, for running the pipeline without real images."""
