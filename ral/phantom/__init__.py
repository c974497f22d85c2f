"""Drawn chest images in the layout of NIH ChestX-ray14: for trying the pipeline without real images."""
