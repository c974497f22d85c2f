"""Runs one check of `benchmarks.gpu`. Checks of numbers and whole processes; those of speed are in
`benchmarks.gpu_speed`.

    python -m benchmarks.gpu_checks SPEC.json

SPEC.json: {"check": name, "output": file, "small": true or false, "backbone": name or null, "folder": folder,
"parent": process id}. A check is a generator of rows, which are written to `output` as they arrive, as JSON
lines.
"""

import argparse
from pathlib import Path

if __name__ == "__main__":  # before the imports that take seconds: --help needs none of them
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("spec", type=Path, help="specification of the check")
    parser.parse_args()

import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from benchmarks import engine as bench
from benchmarks import gpu_speed
from benchmarks.gpu import Row
from benchmarks.gpu_rows import (
    DEVICE,
    GPU,
    Setting,
    at_most,
    equal,
    not_applicable,
    noted,
    prepare,
    row,
    synchronize,
)  # fmt: skip
from benchmarks.synthetic import FINDINGS, write_dataset
from ral.config.environment import TrainingTarget
from ral.config.train import TrainParams
from ral.launch.base import free_port, grace_seconds
from ral.losses import LOSSES, RAL, ClassCounts, build_loss
from ral.models import build_model, classifier
from ral.processes import die_with_parent
from ral.training.spec import TrainSpec

# Limit of the gradient's error by dtype of the logits, relative to the largest gradient.
GRADIENT_ERROR_LIMITS = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def device(_: Setting) -> Iterator[Row]:
    """The device and software versions."""
    yield noted("kind", DEVICE)
    yield noted("device", torch.cuda.get_device_name() if GPU else f"CPU ({platform.machine()})")
    yield noted("torch", torch.__version__)
    yield noted("python", platform.python_version())


def gradient_errors() -> Iterator[Row]:
    """Rows of the largest error of a gradient against float64 on the CPU, over all losses, by type of the logits."""
    torch.manual_seed(0)
    counts = ClassCounts(torch.randint(1, 900, (14,)).double(), torch.full((14,), 1000.0).double())
    for dtype, limit in GRADIENT_ERROR_LIMITS.items():
        errors = []
        for name in LOSSES:
            logits = (3 * torch.randn(257, 14)).to(dtype)
            targets = (torch.rand(257, 14) < 0.2).float()
            targets[3, 4] = torch.nan
            gradients = []
            for target, kind in ((DEVICE, dtype), ("cpu", torch.float64)):
                leaf = logits.to(target, kind, copy=True).requires_grad_()
                build_loss(name, {}, counts, "sum").to(target)(leaf, targets.to(target)).backward()
                assert leaf.grad is not None
                gradients.append(leaf.grad.double().cpu())
            measured, exact = gradients
            error = float((measured - exact).abs().max() / exact.abs().max())
            errors.append((error if np.isfinite(error) else np.inf, name))
        error, name = max(errors)
        yield at_most(f"{str(dtype)[6:]} error of a gradient", error, limit, f"largest: {name}")


def kernel(setting: Setting) -> Iterator[Row]:
    """Gradients of all losses against float64, in every type of logits; more logits than 32 bits can count."""
    yield from gradient_errors()
    if not GPU:
        yield not_applicable("Triton kernel, 2.3 billion logits", "no GPU: torch's operations were checked")
        return
    logits = torch.randn(64, 14, device=DEVICE).requires_grad_()
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        RAL()(logits, torch.zeros_like(logits)).backward()
        synchronize()
    launched = any("_loss_kernel" in event.name for event in profile.events())
    yield equal("RAL runs the Triton kernel", launched, True)
    if setting.small:
        yield not_applicable("2.3 billion logits", "small shapes")
        return
    many = torch.ones((70000, 32768), device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    RAL(reduction="sum")(many, torch.zeros_like(many, dtype=torch.uint8)).backward()
    assert many.grad is not None
    same = bool((many.grad == many.grad[0, 0]).all()) and bool(many.grad[0, 0] > 0)
    yield equal("2.3 billion equal logits, one gradient", same, True)


def fallback(_: Setting) -> Iterator[Row]:
    """The losses if Triton cannot compile (arranged by `main`): they fall back to torch's operations."""
    yield from gradient_errors()


def autocast(setting: Setting) -> Iterator[Row]:
    """Types in which the convolutions and linear layers of the backbone, and the classifier, compute in a training step
    of precision bfloat16.
    """
    backbone, size, batch = setting.shape(("resnet18", 64, 32), ("test_resnet", 32, 16))
    context, data = prepare(setting, size, 4 * batch)
    for stage in (0, 2, 3):
        params = bench.parameters(backbone, {}, batch, precision="bfloat16", zero_stage=stage)
        trainer = bench.build(params, data, context)
        network = trainer.parts.engine.module
        last = set(classifier(network).modules())
        found: dict[bool, set[str]] = {True: set(), False: set()}  # by whether a layer is the classifier

        def record(
            module: Any,
            _inputs: Any,
            output: Any,
            found: dict[bool, set[str]] = found,
            last: set[nn.Module] = last,
        ) -> None:
            found[module in last].add(str(output.dtype).removeprefix("torch."))

        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_hook(record)
        bench.ours(trainer, bench.synthetic(trainer))()
        yield equal(
            f"ZeRO {stage}: type of the backbone's layers", " and ".join(sorted(found[False])), "bfloat16"
        )
        yield equal(f"ZeRO {stage}: type of the classifier", " and ".join(sorted(found[True])), "float32")


def zero(setting: Setting) -> Iterator[Row]:
    """Losses of an epoch in every ZeRO stage, with and without micro-batches, against stage 0 without."""
    backbone, size, batch = setting.shape(("convnext_atto", 64, 64), ("test_convnext", 32, 16))
    context, data = prepare(setting, size, (10 if GPU else 5) * batch)
    first: list[float] = []
    for stage in (0, 1, 2, 3):
        for micro in (None, batch // 4):
            params = bench.parameters(backbone, {}, batch, zero_stage=stage, micro_batch=micro)
            trainer = bench.build(params, data, context)
            trainer.train_epoch()
            values = trainer.state.losses
            if not first:
                first = values
                continue
            difference = max(abs(a - b) / abs(b) for a, b in zip(values, first, strict=True))
            label = "whole batches" if micro is None else f"micro-batches of {micro}"
            yield at_most(f"ZeRO {stage}, {label}: relative difference", difference, 1e-4)


def reproduce(setting: Setting) -> Iterator[Row]:
    """Losses and weights of an epoch, trained twice in one process with cuda_math deterministic."""
    shapes = (("resnet18", 64, 64), ("convnext_atto", 64, 64))
    for number, shape in enumerate(shapes):
        backbone, size, batch = setting.shape(
            shape, ("test_resnet" if number == 0 else "test_convnext", 32, 16)
        )
        inner = Setting(setting.small, setting.backbone, setting.folder / str(number))
        inner.folder.mkdir()
        context, data = prepare(inner, size, 10 * batch)
        for changes in ({}, {"precision": "bfloat16"}, {"precision": "bfloat16", "compile": True}):
            if changes.get("compile") and setting.small:
                continue
            runs = []
            for _ in range(2):
                params = bench.parameters(backbone, {}, batch, **changes)
                trainer = bench.build(params, data, context)
                trainer.train_epoch()
                weights = trainer.parts.engine.full_state_dict()
                runs.append((trainer.state.losses, weights))
            (losses, first), (again, second) = runs
            same = losses == again and all(torch.equal(first[name], second[name]) for name in first)
            label = " compiled" if "compile" in changes else ""
            yield equal(f"{backbone}, {params.train.precision}{label}: same bits", same, True)


def resume(setting: Setting) -> Iterator[Row]:
    """A complete training in a separate process: SIGTERM in its second epoch, then the same command until it
    finishes.
    """
    backbone, size, batch = setting.shape(("convnext_base", 224, 64), ("test_resnet", 32, 16))
    precision = "bfloat16" if GPU else "float32"  # CPUs are slow in bfloat16
    params = bench.parameters(backbone, {}, batch, epochs=2, ema_decay=0.99, precision=precision)
    images = (100 if setting.small else 40) * batch
    command, out = training_command(setting.folder, params, images, size)
    child = subprocess.Popen(command, env=os.environ | {"MASTER_PORT": str(free_port())})
    while child.poll() is None and not (out / "speed.csv").exists():  # written after the first epoch
        time.sleep(0.02)
    time.sleep(0.2 if setting.small else 1)
    start = time.perf_counter()
    child.send_signal(signal.SIGTERM)
    yield equal("SIGTERM: exit code", child.wait(), 143)
    seconds, grace = time.perf_counter() - start, grace_seconds(TrainingTarget())
    yield at_most("seconds to save and end, against training.grace", seconds, grace)
    gigabytes = sum(path.stat().st_size for path in setting.folder.glob("state/training/*/step-*/*")) / 1e9
    # Weights, EMA, the best of both, and two moments; float32.
    network = build_model(params.model, len(FINDINGS))
    whole = 6 * 4 * sum(p.numel() for p in network.parameters()) / 1e9
    close = "ok" if abs(gigabytes / whole - 1) < 0.05 else "failed"
    yield row("GB of the checkpoint", f"{whole:.3g} within 5 %", gigabytes, close)
    start = time.perf_counter()
    resumed = subprocess.run(command, env=os.environ | {"MASTER_PORT": str(free_port())})
    yield equal("the same command again: exit code", resumed.returncode, 0)
    yield noted("seconds of the resumed run", time.perf_counter() - start)
    yield equal("it wrote a model", (out / "model.safetensors").exists(), True)


def training(setting: Setting) -> Iterator[Row]:
    """A complete training with every part: bfloat16, compiled, EMA, second phase, scoring of validation and test."""
    backbone, size, batch = setting.shape(("resnet18", 64, 256), ("test_resnet", 32, 16))
    params = bench.parameters(
        backbone, {}, batch, epochs=3, ema_decay=0.99, compile=not setting.small,
        precision="bfloat16" if GPU else "float32",
        classifier={"epochs": 2, "learning_rate": 1e-3},
    )  # fmt: skip
    command, out = training_command(setting.folder, params, (10 if setting.small else 40) * batch, size)
    start = time.perf_counter()
    done = subprocess.run(command, env=os.environ | {"MASTER_PORT": str(free_port())})
    yield equal("exit code", done.returncode, 0)
    yield noted("seconds", time.perf_counter() - start)
    if done.returncode == 0:
        history = pd.read_csv(out / "history.csv")
        yield equal("phases", history["phase"].tolist(), ["network"] * 3 + ["classifier"] * 2)
        yield equal("skipped steps", int(history["skipped_steps"].sum()), 0)
        falls = bool(history["train_loss"][2] < history["train_loss"][0])
        yield equal("the loss falls", falls, True)


def training_command(folder: Path, params: TrainParams, images: int, size: int) -> tuple[list[str], Path]:
    """The command of a training on random images, and the folder of its outputs."""
    prepared, out = folder / "prepared", folder / "out"
    for path in (prepared, out):
        path.mkdir()
    write_dataset(prepared, images, size)
    table = pd.read_parquet(prepared / "studies.parquet")
    table.loc[table.index % 20 == 0, "split"] = "test"
    table.to_parquet(prepared / "studies.parquet", index=False)
    spec = TrainSpec(
        params=params, prepared=prepared, out=out, run=out, state_dir=folder / "state",
        failure=folder / "failure.json", checkpoint_minutes=10.0, keep=2, tensorboard=False, dvclive=False,
        min_positives=1,
    )  # fmt: skip
    spec.write(folder / "training.json")
    return [sys.executable, "-m", "ral.training", str(folder / "training.json")], out


def main() -> None:
    """Run one check."""
    die_with_parent()
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    if os.getppid() != spec["parent"]:  # it ended while this process was starting
        sys.exit(1)
    folder = Path(spec["folder"])
    if spec["check"] == "fallback":
        os.environ |= {"CC": "/none", "TRITON_CACHE_DIR": str(folder / "triton")}
    os.environ["MASTER_PORT"] = str(free_port())
    if not GPU:
        torch.set_num_threads(2)
    check = globals().get(spec["check"]) or getattr(gpu_speed, spec["check"])
    rows = check(Setting(spec["small"], spec["backbone"], folder))
    with Path(spec["output"]).open("w", encoding="utf-8") as stream:
        for entry in rows:
            stream.write(json.dumps(entry) + "\n")
            stream.flush()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
