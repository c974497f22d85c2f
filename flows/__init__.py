"""Prefect: when and where the pipeline runs, and what it shows while it does. The steps and their graph are DVC's."""

import os

# Usage statistics only for who asks for them: Prefect reads this when it is imported.
os.environ.setdefault("DO_NOT_TRACK", "1")
