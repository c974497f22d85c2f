"""RAL under DeepSpeed's ZeRO 3 with accumulation: the steps of a plain torch loop."""

import subprocess
from pathlib import Path

import pytest
from forks import forks

from ral.launch.base import free_port
from ral.launch.ranks import rendezvous_env

SCRIPT = """
import os
os.environ["DS_ACCELERATOR"] = "cpu"
import torch, deepspeed
from ral.losses import RAL
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.init_distributed(dist_backend="gloo", verbose=False)
generator = torch.Generator().manual_seed(0)
x = torch.randn(64, 16, generator=generator)
y = (torch.rand(64, 5, generator=generator) < 0.2).float()

def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 5))

plain = network()
optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01)
wanted = []
for step in range(6):
    optimizer.zero_grad()
    loss = RAL()(plain(x), y)
    loss.backward()
    optimizer.step()
    wanted.append(loss.item())

model = network()
engine, *_ = deepspeed.initialize(model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=0.01), config={
    "train_batch_size": 64, "train_micro_batch_size_per_gpu": 16, "zero_optimization": {"stage": 3},
    "zero_allow_untested_optimizer": True, "steps_per_print": 10**9})
found = []
for step in range(6):
    total = 0.0
    for part in range(4):
        rows = slice(16 * part, 16 * part + 16)
        loss = RAL()(engine(x[rows]), y[rows])
        engine.backward(loss)
        engine.step()
        total += loss.item() / 4
    found.append(total)
torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=1e-4, atol=1e-6)
assert found[-1] < found[0]
torch.distributed.destroy_process_group()
print("same")
"""


def test_zero_3_with_accumulation(environment: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    done = subprocess.run(
        forks().script(SCRIPT),
        env=environment | rendezvous_env(0, 0, 1, "127.0.0.1", free_port()),
        capture_output=True,
        text=True,
    )
    assert done.stdout.rstrip().endswith("same"), done.stdout + done.stderr
