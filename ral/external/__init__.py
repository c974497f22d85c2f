"""External validation: another labelled set through an existing model, with its calibration and thresholds."""
