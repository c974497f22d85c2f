"""Drawn chest films in the layout of NIH ChestX-ray14: for trying the pipeline without real films."""
