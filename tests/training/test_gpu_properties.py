"""What a CPU can show of training on a GPU: types, layouts, copies from the host, memory, and the choice of a checkpoint."""

import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from forks import forks
from torch import Tensor, nn
from trainings import BATCH_NORM, SEPARABLE, params

from ral.data.dataset import open_dataset
from ral.errors import UserError
from ral.inference import score
from ral.launch.base import free_port
from ral.losses import build_loss
from ral.models import build_model
from ral.training.augment import draw_transforms, transform
from ral.training.backend import set_cuda_math
from ral.training.batch_norm import BufferBackup, synchronise_batch_norm


def test_bfloat16_holds_inside_an_engine_that_turns_autocast_off(monkeypatch: pytest.MonkeyPatch) -> None:
    from deepspeed.runtime import torch_autocast

    network = build_model(SEPARABLE, 3)
    network.use_bfloat16 = True
    # What DeepSpeed asks on a GPU inside an autocast context; on a CPU this function ignores the CPU's autocast.
    as_on_a_gpu = SimpleNamespace(is_autocast_enabled=lambda: True, autocast=torch.autocast)
    monkeypatch.setattr(torch_autocast, "torch", as_on_a_gpu)
    monkeypatch.setattr(torch_autocast, "_WARNED_NESTED_AUTOCAST", True)
    engine = SimpleNamespace(torch_autocast_enabled=lambda: False)
    images = torch.rand(2, 1, 32, 32)
    seen: list[torch.dtype] = []
    layer = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    layer.register_forward_hook(lambda *arguments: seen.append(arguments[-1].dtype))
    with torch.autocast("cpu", torch.bfloat16), torch_autocast.autocast_if_enabled(engine):
        assert nn.Linear(2, 2)(torch.rand(1, 2)).dtype == torch.float32  # the engine has turned it off
        network(images)
    network.use_bfloat16 = False
    network(images)
    assert seen == [torch.bfloat16, torch.float32]


def test_one_channel_is_marked_channels_last() -> None:
    images = torch.rand(2, 1, 4, 6)
    marked = score.channels_last(images)
    assert marked.stride() == (24, 1, 6, 1)
    assert torch.equal(marked, images)
    # A convolution whose weights have the default layout, as under ZeRO, goes on in channels_last.
    assert F.conv2d(marked, torch.rand(8, 1, 3, 3)).is_contiguous(memory_format=torch.channels_last)
    three = torch.rand(2, 3, 4, 6)
    assert score.channels_last(three).is_contiguous(memory_format=torch.channels_last)


def test_synchronised_batch_norm_keeps_the_modules() -> None:
    network = build_model(BATCH_NORM, 3)
    before = list(network.modules())
    synchronise_batch_norm(network)
    assert all(one is two for one, two in zip(before, network.modules(), strict=True))
    kinds = {type(module).__name__ for module in before if hasattr(module, "running_mean")}
    assert kinds
    assert all(kind.startswith("Synchronised") for kind in kinds)


def test_a_skipped_step_leaves_the_batch_statistics() -> None:
    network = build_model(BATCH_NORM, 3)
    names = list(network.state_dict())
    backup = BufferBackup(network)
    assert list(network.state_dict()) == names
    assert len(backup.flat) == 1
    network.train()(torch.rand(4, 1, 32, 32))
    backup.after_step(torch.zeros(()))
    kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network(torch.full((4, 1, 32, 32), torch.inf))
    assert not all(b.isfinite().all() for b in network.buffers())
    backup.after_step(torch.ones(()))
    assert all(
        torch.equal(kept[name], tensor)
        for name, tensor in network.state_dict().items()
        if "num_batches" not in name
    )


STEP = """
import os, sys, tempfile
from pathlib import Path
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from benchmarks import engine as bench
from benchmarks.gpu_rows import join
from benchmarks.synthetic import write_dataset

class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))

with tempfile.TemporaryDirectory() as folder:
    data = write_dataset(Path(folder), 64, 32)
    trainer = bench.build(bench.parameters("test_resnet", {}, 16, ema_decay=0.9), data, join())
    assert trainer.parts.ema is not None
    step = bench.ours(trainer, bench.synthetic(trainer))
    step()
    assert not trainer.parts.engine.deepspeed.tput_timer.config.enabled
    loss = trainer.forward_backward(bench.synthetic(trainer))
    with Recorder() as recorder:
        trainer.parts.engine.step()
        recorder.names.append("after")
        trainer._end_step(0, loss)
    waits = {"_local_scalar_dense", "lift_fresh"} & set(recorder.names)
    assert not waits, waits
    after = recorder.names[recorder.names.index("after"):]
    assert len(after) < 40, after  # independent of the number of layers
    print("ok")
"""


def test_a_step_copies_nothing_from_the_host() -> None:
    environment = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(free_port()), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        forks().script(STEP), cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.stdout.endswith("ok\n"), done.stderr


def test_the_weights_of_focal_stay_on_the_device() -> None:
    assert "sides" in dict(build_loss("focal", {"alpha": 0.25}).named_buffers())


def test_the_grid_is_that_of_torch_without_its_matrix_product() -> None:
    config = params().train.augment.model_copy(update={"rotate": 30.0, "zoom": 0.3, "shift": 0.2})
    maps = draw_transforms(5, config, torch.Generator().manual_seed(0))
    images = torch.rand(5, 1, 17, 17)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    expected = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    torch.testing.assert_close(transform(images, maps), expected, rtol=0, atol=2e-5)


class Small(nn.Module):
    """A network on a device with memory for `limit` images; logits are pixel means."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit, self.batches = limit, []

    def forward(self, images: Tensor) -> Tensor:
        if len(images) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(len(images))
        return images.mean((1, 2, 3)).unsqueeze(1).repeat(1, 14)


def test_scoring_halves_its_batch_until_it_fits(
    prepared: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, cpu = open_dataset(prepared), torch.device("cpu")
    rows = dataset.rows("train")[:50]
    monkeypatch.setattr(score, "BATCH", 20)
    expected = score.score_images(Small(1000), dataset, dataset.info, rows, cpu)
    with caplog.at_level(logging.WARNING):
        network = Small(6)
        found = score.score_images(network, dataset, dataset.info, rows, cpu)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert max(network.batches) == 5
    assert sum(network.batches) == 50
    assert "scoring 5 images at a time" in caplog.text
    with pytest.raises(UserError, match="Out of memory on cpu when scoring a single image"):
        score.score_images(Small(0), dataset, dataset.info, rows, cpu)


def test_a_compiled_network_sees_one_shape_and_no_logit_of_padding(
    prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, cpu = open_dataset(prepared), torch.device("cpu")
    rows = dataset.rows("train")[:50]
    monkeypatch.setattr(score, "BATCH", 20)
    expected = score.score_images(Small(1000), dataset, dataset.info, rows, cpu)
    network = Small(1000)
    found = score.score_images(network, dataset, dataset.info, rows, cpu, pad=True)
    assert network.batches == [20, 20, 20]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("size", "images"), [(64, 512), (224, 512), (512, 128), (1024, 32), (8192, 1)])
def test_images_per_pass_follow_their_size(size: int, images: int) -> None:
    assert score.images_per_pass(size) == images


@pytest.mark.parametrize("cuda_math", ["deterministic", "fast"])
def test_cuda_math_sets_what_it_says(cuda_math: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    try:
        set_cuda_math(params(cuda_math=cuda_math).train)
        fast = cuda_math == "fast"
        assert torch.are_deterministic_algorithms_enabled() is not fast
        assert (cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32) == (fast, fast, fast)
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) is not fast
    finally:
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before
        torch.use_deterministic_algorithms(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


LOAD = """
import sys
from pathlib import Path
from types import SimpleNamespace
import torch
from ral.training.checkpoint import Checkpoints
from ral.training.distributed import DistributedContext
from ral.training.trainer import Trainer
rank, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
# Each rank has its own view of the state folder: the second one lists a checkpoint that the first does not.
checkpoints = Checkpoints(folder / f"seen_by_{rank}", 5)
state = {"best": {kind: {"ap": 0.5, "epoch": 1} for kind in ("last", "ema")}}
for step in range(1, 3 + rank):
    checkpoints.save(step, {"weights/a": torch.full((2,), float(step))}, state | {"total_steps": step})
torch.distributed.barrier()
self = SimpleNamespace(context=DistributedContext(rank, 2, torch.device("cpu")), checkpoints=checkpoints, _log=len)
tensors = Trainer.load_checkpoint(self)
print(self.state.total_steps, tensors["weights/a"].tolist())
"""


def test_rank_0_chooses_the_checkpoint(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [*forks().script(LOAD), str(rank), str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    for rank in ranks:
        printed, errors = rank.communicate()
        assert printed == "2 [2.0, 2.0]\n", errors


COMPILE = """
import torch
from ral.log import configure
from ral.training.backend import compile_works
configure()
torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
print(compile_works(torch.device("cpu")))
"""


def test_without_a_compiler_training_is_eager_and_says_so(tmp_path: Path) -> None:
    environment = os.environ | {"CXX": "/none", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "False\n", done.stderr
    assert "torch.compile does not work here" in done.stderr
    assert "training runs without it. Install gcc." in done.stderr


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        ("NCCL error: remote process exited or there was a network error, ncclRemoteError", True),
        ("NCCL error: invalid usage, ncclInvalidUsage. Duplicate GPU detected : rank 0 and rank 1", False),
        ("[gloo] Connection closed by peer [127.0.0.1]:4711", True),
        ("[gloo] Timed out waiting 60000ms for recv operation to complete", True),
        ("shape mismatch", False),
    ],
)
def test_a_wrong_use_of_nccl_is_not_taken_for_a_lost_rank(message: str, lost: bool) -> None:
    from ral.training.__main__ import _peer_lost

    assert _peer_lost(RuntimeError(message)) is lost
