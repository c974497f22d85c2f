"""The training loop with DeepSpeed against a bare torch loop, and real input against preloaded input.

    python -m benchmarks.engine            # several minutes on two cores; with a GPU, ConvNeXt-B as well
    python -m benchmarks.engine --quick    # under a minute

The bare loop does the minimum to train the same network: augment, forward, RAL, backward, clip, fused AdamW.
Ours adds DeepSpeed, the check for non-finite steps and the all-reduce of the step status. Blocks of steps of
both alternate in one process, on the same batches in memory. engine_overhead is ours over bare minus 1
(median of paired blocks); real_over_synthetic is images/s of whole epochs from shards over images/s of the
same steps on a preloaded batch. On a CPU also: bfloat16_speedup, steps of our loop with train.precision
bfloat16 against float32. On a GPU also: eager_ratio, the same network as in the official recipe
(eager, float16 autocast with a gradient scaler, cuDNN off) against ours in bfloat16, compiled. Prints a table
and, as the last line, JSON.
"""

import argparse

if __name__ == "__main__":  # before the imports that take seconds: --help needs none of them
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="under a minute")
    options = parser.parse_args()

import functools
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.synthetic import write_dataset
from ral.config.losses import LossConfig
from ral.config.model import ModelConfig
from ral.config.train import TrainConfig, TrainParams
from ral.data.dataset import Dataset
from ral.inference.prefetch import MicroBatch
from ral.launch.base import free_port
from ral.losses import RAL
from ral.memory import keep_freed_memory
from ral.models import build_model
from ral.training.augment import augmented
from ral.training.backend import set_cuda_math
from ral.training.build import build_trainer
from ral.training.checkpoint import Checkpoints
from ral.training.distributed import DistributedContext, init_process
from ral.training.spec import TrainSpec
from ral.training.state import PreemptionFlag, TrainState
from ral.training.trainer import Trainer

AUGMENT = {"flip": 0.5, "rotate": 8.0, "shift": 0.06, "zoom": 0.1}


def parameters(backbone: str, options: dict[str, Any], batch: int, **changes: Any) -> TrainParams:
    """Training parameters."""
    train = {
        "epochs": 1,
        "batch_size": batch,
        "learning_rate": 1e-4,
        "augment": AUGMENT,
        "ema_decay": None,
    }
    return TrainParams(
        model=ModelConfig(backbone=backbone, options=options),
        loss=LossConfig(name="ral"),
        train=TrainConfig.model_validate(train | changes),
    )


def build(params: TrainParams, dataset: Dataset, context: DistributedContext) -> Trainer:
    """The trainer of our loop, at the start of its first phase; it saves no checkpoint."""
    set_cuda_math(params.train)
    folder = dataset.folder
    spec = TrainSpec(
        params=params, prepared=folder, out=folder, run=folder, state_dir=folder, failure=folder / "failure.json",
        checkpoint_minutes=math.inf, keep=1, tensorboard=False, dvclive=False, min_positives=1,
    )  # fmt: skip
    checkpoints = Checkpoints(folder / "checkpoints", spec.keep, spec.checkpoint_minutes)
    trainer = build_trainer(spec, dataset, context, checkpoints, PreemptionFlag())
    trainer.start_phase({})
    return trainer


def synthetic(trainer: Trainer) -> MicroBatch:
    """The first batch of the epoch, on the device."""
    batch = next(trainer.parts.batches.micro_batches(0, 0))
    device = trainer.context.device
    moved = {name: getattr(batch, name).to(device) for name in ("images", "targets", "maps")}
    return batch._replace(**moved)


def ours(trainer: Trainer, batch: MicroBatch) -> Callable[[], None]:
    """One optimizer step of our loop."""
    trainer.parts.engine.train_mode()
    trainer.parts.buffer_backup.save()
    return functools.partial(trainer.train_step, 0, [batch])


def bare(
    params: TrainParams, dataset: Dataset, batch: MicroBatch, official: bool = False
) -> Callable[[], None]:
    """One optimizer step of plain torch; `official` follows the official recipe."""
    torch.manual_seed(0)
    device = batch.images.device
    model = build_model(params.model, len(dataset.findings)).to(device)
    if not official:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=not official)
    half = torch.float16 if official else torch.bfloat16
    use_half = official or params.train.precision == "bfloat16"
    scaler = torch.amp.GradScaler(device.type, enabled=official)
    loss_function = RAL()
    model.train()
    layout = torch.contiguous_format if official else torch.channels_last

    def step() -> None:
        images = augmented(batch.images, batch.maps, dataset.info)
        with torch.autocast(device.type, half, enabled=use_half):
            logits = model(images.contiguous(memory_format=layout))
        loss = loss_function(logits, batch.targets)
        scaler.scale(loss).backward()
        if not official:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

    return step


def paired(
    steps: dict[str, Callable[[], None]], rounds: int, block: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds per step of each, in alternating blocks; the first round is discarded."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            _wait(device)
            start = time.perf_counter()
            for _ in range(block):
                step()
            _wait(device)
            times[name].append((time.perf_counter() - start) / block)
    return {name: seconds[1:] for name, seconds in times.items()}


def epoch_rate(trainer: Trainer, wait: bool = True) -> float:
    """Images per second of an epoch with real input; without `wait`, of its launches."""
    device = trainer.context.device if wait else torch.device("cpu")
    trainer.state = TrainState()
    _wait(device)
    start = time.perf_counter()
    trainer.train_epoch()
    _wait(device)
    return trainer.parts.batches.images(0) / (time.perf_counter() - start)


def bfloat16_speedup(step: Callable[[], None], half: Callable[[], None], rounds: int, block: int) -> float:
    """Time of a step in float32 over that in bfloat16, on a CPU; printed and returned."""
    times = paired({"float32": step, "bfloat16": half}, rounds, block, torch.device("cpu"))
    speedup = statistics.median(a / b for a, b in zip(times["float32"], times["bfloat16"], strict=True))
    print(f"{'ours, bfloat16':28}{statistics.median(times['bfloat16']) * 1e3:10.1f} ms/step{speedup:9.2f}x")
    return round(speedup, 2)


def real_input(trainer: Trainer, step: Callable[[], None], batch: int, rounds: int) -> tuple[float, float]:
    """Images per second of epochs from shards, and the same over those of as many preloaded batches."""
    epoch_rate(trainer)
    ratios = []
    for _ in range(rounds):
        times = paired({"preloaded": step}, 1, trainer.parts.batches.steps, trainer.context.device)
        ratios.append((epoch_rate(trainer), batch / statistics.median(times["preloaded"])))
    real, preloaded = (statistics.median(part) for part in zip(*ratios, strict=True))
    ratio = round(statistics.median(a / b for a, b in ratios), 4)
    print(f"{'preloaded input':28}{preloaded:10.1f} images/s")
    print(f"{'input from shards':28}{real:10.1f} images/s{ratio:10.3f}")
    return real, ratio


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main(options: argparse.Namespace) -> None:
    """Measure and print."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ["MASTER_PORT"] = str(free_port())
    torch.set_num_threads(2)
    context = init_process()
    gpu = context.device.type == "cuda"
    if not gpu:
        keep_freed_memory()  # as a training does; the bare loop profits as well
    size, images, batch = (224, 16384, 256) if gpu else (64, 2048, 128)
    backbone, settings = (
        ("convnext_base", {}) if gpu else ("resnet10t", {"channels": [32, 64, 128, 256], "stem_width": 16})
    )
    changes = {"precision": "bfloat16", "compile": True} if gpu else {}
    params = parameters(backbone, settings, batch, **changes)
    rounds, block = (4, 4) if options.quick else (30, 10)
    name = torch.cuda.get_device_name() if gpu else f"{platform.processor() or platform.machine()}, 2 threads"
    print(f"torch {torch.__version__}, {name}; {backbone}, {size} px, batch {batch}")
    with tempfile.TemporaryDirectory() as folder:
        dataset = write_dataset(Path(folder), images, size)
        trainer = build(params, dataset, context)
        preloaded = synthetic(trainer)
        # For the overhead both are eager; both compiled would do too, but compile twice.
        eager = (
            build(parameters(backbone, settings, batch, **(changes | {"compile": False})), dataset, context)
            if gpu
            else trainer
        )
        times = paired(
            {"ours": ours(eager, preloaded), "bare": bare(params, dataset, preloaded)},
            rounds,
            block,
            context.device,
        )
        overhead = statistics.median(a / b for a, b in zip(times["ours"], times["bare"], strict=True)) - 1
        ours_ms, bare_ms = (statistics.median(times[kind]) * 1e3 for kind in ("ours", "bare"))
        print(
            f"{'bare torch':28}{bare_ms:10.1f} ms/step\n{'ours':28}{ours_ms:10.1f} ms/step{overhead:+10.1%}"
        )
        result: dict[str, float] = {"engine_overhead": round(overhead, 4)}
        step = ours(trainer, preloaded)
        if not gpu:
            half = build(parameters(backbone, settings, batch, precision="bfloat16"), dataset, context)
            result["bfloat16_speedup"] = bfloat16_speedup(step, ours(half, preloaded), rounds, block)
        real, result["real_over_synthetic"] = real_input(
            trainer, step, len(preloaded.images), 2 if options.quick else 7
        )
        if gpu:
            torch.backends.cudnn.enabled = False
            official = paired(
                {"official": bare(params, dataset, preloaded, official=True)}, 3, 5, context.device
            )["official"]
            torch.backends.cudnn.enabled = True
            rate = len(preloaded.images) / statistics.median(official)
            result["eager_ratio"] = round(real / rate, 2)
            print(f"{'official recipe, eager':28}{rate:10.1f} images/s{result['eager_ratio']:10.2f}")
    torch.distributed.destroy_process_group()
    print(json.dumps(result))


if __name__ == "__main__":
    main(options)
