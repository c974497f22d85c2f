"""Prefect: when and where the pipeline runs, and what it shows while it does. The steps and their graph are DVC's."""

import os

from ral.config.environment import home, load_environment
from ral.errors import exit_with_message

# Usage statistics only for who asks for them: Prefect reads this when it is imported.
os.environ.setdefault("DO_NOT_TRACK", "1")

# Prefect asks for the user's home when it is imported, and ends in a trace where there is none.
if home() is None:
    with exit_with_message():
        load_environment()
