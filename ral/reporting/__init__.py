"""The HTML report, its plots, the model card and the summary at the end of a run."""
