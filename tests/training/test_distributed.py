"""How long a rank waits for another one."""

import os
import subprocess
import sys

from conftest import ROOT

from ral.launch.base import free_port

ENGINE = """
import torch
from torch.distributed import distributed_c10d
from trainings import params
from ral.training.distributed import init_process
from ral.training.engine import Engine

context = init_process()
network = torch.nn.Linear(2, 2)
Engine(network, [{"params": list(network.parameters())}], params().train, context)
for group in distributed_c10d._world.pg_map:
    print("waits", group._get_backend(torch.device("cpu")).options._timeout)
"""


def test_every_process_group_waits_equally_long() -> None:
    """Also those that DeepSpeed creates, with torch's default of 30 minutes."""
    environment = os.environ | {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "DEEPSPEED_TIMEOUT": "7",
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", ENGINE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    waits = [line for line in done.stdout.splitlines() if line.startswith("waits")]
    assert len(waits) > 1
    assert set(waits) == {"waits 0:07:00"}
