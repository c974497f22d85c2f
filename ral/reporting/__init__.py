"""What people read: the HTML report, its plots, the summary, the manifest of a run."""
