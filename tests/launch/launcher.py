"""Launches fake ranks in a separate process, as a step does, so that a test can kill it.

python launcher.py RUN_FOLDER TARGET.json     # prints the error, if any, as one line of JSON
"""

import json
import sys
from pathlib import Path

from ral.config.environment import TrainingTarget
from ral.errors import UserError
from ral.launch import launch
from ral.processes import on_termination_signal

on_termination_signal(lambda number, _: sys.exit(128 + number))
folder = Path(sys.argv[1])
target = TrainingTarget.model_validate_json(Path(sys.argv[2]).read_text())
rank = (sys.executable, str(Path(__file__).with_name("rank.py")))
try:
    launch(folder / "train.json", target, folder, rank)
except UserError as error:
    print(json.dumps({"message": str(error), "kind": error.kind, "retry": error.retry}))
    sys.exit(1)
