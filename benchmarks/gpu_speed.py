"""The checks of `benchmarks.gpu` that measure time, memory and launches."""

import functools
import statistics
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator

import numpy as np
import torch
from torch.autograd import DeviceType

from benchmarks import engine as bench
from benchmarks import losses as loss_bench
from benchmarks.gpu import Row
from benchmarks.gpu_rows import (
    DEVICE,
    GPU,
    UNRATED,
    Setting,
    at_least,
    at_most,
    equal,
    free_memory,
    join,
    milliseconds,
    noted,
    prepare,
    synchronize,
)  # fmt: skip
from benchmarks.synthetic import write_dataset
from ral.config.model import ModelConfig
from ral.data.dataset import Dataset
from ral.inference.score import images_per_pass, score_images
from ral.losses import RAL
from ral.models import Network, build_model
from ral.training.trainer import Trainer

# Least ratio of the eager form's time on the GPU to ours, by shape.
LEAST = dict(zip(loss_bench.SHAPES, (10, 15, 15, 20), strict=True))


def profiled(step: Callable[[], object], steps: int = 4) -> dict[str, float]:
    """Per step: synchronisations by kind, kernel launches, GPU busy ms, and ms in which the host did not wait
    for an event.
    """
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        with torch.profiler.record_function("measured steps"):
            for _ in range(steps):
                step()
        synchronize()
    events = profile.events()
    # The GPU has a span of that name too; the profiler's own synchronisations are outside the host's.
    span = next(
        e for e in events if e.name == "measured steps" and e.device_type == DeviceType.CPU
    ).time_range
    inside = [
        e for e in events if e.device_type == DeviceType.CPU and span.start <= e.time_range.start <= span.end
    ]
    calls = Counter(event.name for event in inside)
    waiting = sum(event.time_range.elapsed_us() for event in inside if event.name == "cudaEventSynchronize")
    launches = sum(n for name, n in calls.items() if name.startswith(("cudaLaunchKernel", "cuLaunchKernel")))
    busy = sum(
        event.time_range.elapsed_us()
        for event in events
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    )
    return {
        "device waits": calls["cudaDeviceSynchronize"] / steps,
        "stream waits": calls["cudaStreamSynchronize"] / steps,
        "event waits": calls["cudaEventSynchronize"] / steps,
        "launches": launches / steps,
        "GPU busy ms": busy / steps / 1e3,
        "host ms": (span.elapsed_us() - waiting) / steps / 1e3,
    }


def step(setting: Setting) -> Iterator[Row]:
    """Waits for the GPU and launches per optimizer step, with the moving average of the weights."""
    shapes = [setting.shape(("resnet50", 224, 256)), setting.shape(("resnet10t", 64, 128))]
    context, data = join(), {}
    for backbone, size, batch in dict.fromkeys(shapes):
        label = f"{backbone} {size} px"
        folder = setting.folder / f"{size}"
        folder.mkdir()
        data[size] = write_dataset(folder, 12 * batch, size)
        params = bench.parameters(backbone, {}, batch, precision="bfloat16", ema_decay=0.999)
        trainer = bench.build(params, data[size], context)
        preloaded = bench.synthetic(trainer)
        one_step = bench.ours(trainer, preloaded)
        for _ in range(6):
            one_step()
        whole, figures = milliseconds(one_step), profiled(one_step)
        yield from _waits(label, figures)
        yield noted(f"{label}: ms of a step", whole)
        if setting.small or backbone == "resnet10t":  # launches take longer than their work
            yield noted(f"{label}: host ms of a step", figures["host ms"])
        else:
            yield at_most(f"{label}: host ms of a step", figures["host ms"], round(whole, 2))
        yield noted(f"{label}: GPU busy ms of a step", figures["GPU busy ms"])
        bench.epoch_rate(trainer)
        epoch = profiled(functools.partial(bench.epoch_rate, trainer, wait=False), 1)
        yield from _waits(
            f"{label}, epoch", {name: n / trainer.parts.batches.steps for name, n in epoch.items()}
        )
        del trainer, one_step
        free_memory()
        plain = bench.bare(params, data[size], preloaded)
        plain()
        ratio = figures["launches"] / max(1, profiled(plain)["launches"])
        yield noted(f"{label}: launches of a step", figures["launches"], f"{ratio:.2f} of a bare loop's")
        yield noted(f"{label}: ms of a bare loop's step", milliseconds(plain))
        del plain
        free_memory()


def _waits(label: str, figures: dict[str, float]) -> Iterator[Row]:
    """The rows of what a step waits for."""
    yield equal(f"{label}: waits for the device", figures["device waits"], 0)
    yield equal(f"{label}: waits for a stream", figures["stream waits"], 0)
    yield equal(f"{label}: waits for an event", figures["event waits"], 1)


def losses(setting: Setting) -> Iterator[Row]:
    """RAL forward and backward against its eager transcription and against torch.compile."""
    seconds = 0.5 if setting.small else 2
    for shape in loss_bench.SHAPES[: 2 if setting.small else None]:
        label = f"{shape[0]} x {shape[1]}"
        times = loss_bench.ratio(DEVICE, shape, seconds, (loss_bench.eager, RAL()))[2]
        yield noted(f"{label}: eager time / ours", times, "with the time to launch" if GPU else UNRATED)
        if not setting.small:
            yield from _compiled_losses(label, shape, seconds)
        if GPU:
            # The allocator rounds up, which shows in small tensors.
            limit = 1.05 if shape[0] * shape[1] > loss_bench.MEASURABLE else 1.5
            peak = loss_bench.memory(DEVICE, shape)
            assert peak is not None
            yield at_most(f"{label}: memory in units of the logits", peak, limit)
        yield at_most(f"{label}: error of the gradient", loss_bench.error(DEVICE, shape), 1e-6)
        free_memory()


def _compiled_losses(label: str, shape: tuple[int, int], seconds: float) -> Iterator[Row]:
    """Rows of the compiled forms: what torch.compile makes of the eager formula, and of our loss without its kernel."""
    torch.compiler.reset()
    peers = {"eager": torch.compile(loss_bench.eager), "RAL": torch.compile(RAL())}
    for name, peer in peers.items():
        times = loss_bench.ratio(DEVICE, shape, seconds, (peer, RAL()))[2]
        what = f"{label}: compiled {name} time / ours"
        yield at_least(what, times, 0.8) if name == "eager" else noted(what, times)
    if not GPU:
        return
    ours = loss_bench.graph_seconds(RAL(reduction="sum"), shape)  # as in training, and in the authors' code
    yield noted(f"{label}: GPU microseconds of ours", ours * 1e6)
    times = loss_bench.graph_seconds(loss_bench.eager, shape) / ours
    yield at_least(f"{label}: eager GPU time / ours", times, LEAST[shape])
    compiled = loss_bench.graph_seconds(torch.compile(RAL(reduction="sum")), shape) / ours
    yield noted(f"{label}: compiled RAL GPU time / ours", compiled)
    yield noted(f"{label}: memory of compiled RAL", loss_bench.memory(DEVICE, shape, peers["RAL"]))


def speed(setting: Setting) -> Iterator[Row]:
    """Eager training steps against a bare torch loop."""
    backbone, size, batch = setting.shape(("convnext_base", 224, 128))
    context, data = prepare(setting, size, 2 * batch)
    # TF32 changes float32 only, so bfloat16 is measured once; its steps are short and need more rounds.
    kinds = (
        ("float32", "deterministic", 200, 3),
        ("float32", "fast", 400, 6),
        ("bfloat16", "deterministic", 800, 12),
    )
    for precision, cuda_math, least, rounds in kinds:
        label = f"{precision} {cuda_math}"
        params = bench.parameters(backbone, {}, batch, precision=precision, cuda_math=cuda_math)
        trainer = bench.build(params, data, context)
        preloaded = bench.synthetic(trainer)
        steps = {"ours": bench.ours(trainer, preloaded), "bare": bench.bare(params, data, preloaded)}
        times = bench.paired(steps, rounds, 5, context.device)
        rate = len(preloaded.images) / statistics.median(times["ours"])
        yield at_least(f"{label}: images/s", rate, least, setting.rated)
        ratio = statistics.median(b / a for a, b in zip(times["ours"], times["bare"], strict=True))
        yield at_least(f"{label}: rate / bare torch's", ratio, 0.97, not setting.small)
        if GPU:
            yield noted(f"{label}: GiB of both", torch.cuda.max_memory_allocated() / 2**30)
        del trainer, preloaded, steps
        free_memory()


def compiled(setting: Setting) -> Iterator[Row]:
    """Compiled training, whole epochs with input from shards, against the authors' recipe."""
    backbone, size, batch = setting.shape(("convnext_base", 224, 128))
    context, data = prepare(setting, size, 16 * batch)
    params = bench.parameters(backbone, {}, batch, precision="bfloat16", compile=True)
    trainer = bench.build(params, data, context)
    preloaded = bench.synthetic(trainer)
    rate = yield from _real_input(setting, trainer)
    del trainer
    free_memory()
    if GPU:
        torch.backends.cudnn.enabled = False
        official = bench.bare(params, data, preloaded, official=True)
        seconds = bench.paired({"official": official}, 4, 4, context.device)["official"]
        slow = len(preloaded.images) / statistics.median(seconds)
        yield noted("authors' recipe (eager, float16, cuDNN off): images/s", slow)
        yield at_least("compiled / the authors' recipe", rate / slow, 3.3, setting.rated)


def _real_input(setting: Setting, trainer: Trainer) -> Generator[Row, None, float]:
    """Whole epochs of a compiled network against the same steps on a preloaded batch; returns images per second."""
    preloaded = bench.synthetic(trainer)
    compiled = bench.ours(trainer, preloaded)
    start = time.perf_counter()
    compiled()
    synchronize()
    yield noted("compiled: seconds of the first step", time.perf_counter() - start)
    bench.epoch_rate(trainer)
    ratios, rates = [], []
    for _ in range(5):
        rates.append(len(preloaded.images) / milliseconds(compiled, trainer.parts.batches.steps) * 1e3)
        ratios.append(bench.epoch_rate(trainer) / rates[-1])
    rate = statistics.median(rates)
    yield at_least("compiled: images/s", rate, 1200, setting.rated)
    yield at_least(
        "compiled: input from shards / preloaded", statistics.median(ratios), 0.97, not setting.small
    )
    return rate


def compile(setting: Setting) -> Iterator[Row]:
    """Batches of an epoch have n or n - 1 images: two static graphs without breaks, as fast as each other."""
    from torch._dynamo.utils import counters

    backbone, size, batch = setting.shape(("resnet18", 224, 256), ("test_resnet", 32, 16))
    context, data = prepare(setting, size, 4 * batch)
    params = bench.parameters(backbone, {}, batch, precision="bfloat16", compile=True)
    trainer = bench.build(params, data, context)
    whole = bench.synthetic(trainer)
    before = counters["stats"]["unique_graphs"]  # the probe for a compiler is one

    def step_of(images: int) -> Callable[[], None]:
        tensors = {name: getattr(whole, name)[:images] for name in ("images", "targets", "maps")}
        return bench.ours(trainer, whole._replace(**tensors))

    batch, rates = len(whole.images), []
    for images in (batch, batch - 1):
        run_step = step_of(images)
        start = time.perf_counter()
        run_step()
        synchronize()
        yield noted(f"{images} images: seconds of the first step", time.perf_counter() - start)
        milliseconds(run_step, 3)
        rates.append(images / milliseconds(run_step))
    yield equal("graphs", counters["stats"]["unique_graphs"] - before, 2)
    yield equal("kinds of graph breaks", len(counters["graph_break"]), 0)
    try:
        with torch.compiler.set_stance("fail_on_recompile"):
            step_of(batch - 2)()
        static = False
    except RuntimeError as error:
        if "recompile" not in str(error):
            raise
        static = True
    yield equal("the second graph is static", static, True)
    if GPU and not setting.small:
        yield at_least("rate of the second size / first", rates[1] / rates[0], 0.97)
    else:
        yield noted("rate of the second size / first", rates[1] / rates[0], UNRATED)


def score(setting: Setting) -> Iterator[Row]:
    """Scoring of images, as after an epoch."""
    backbone, size, images = setting.shape(("convnext_base", 512, 1024), ("test_resnet", 64, 256))
    context, data = prepare(setting, size, images)
    network = build_model(ModelConfig(backbone=backbone), len(data.findings)).eval().to(context.device)
    network.use_bfloat16 = True
    for count in (images // 2, images):  # the first time, cuDNN chooses its algorithms
        synchronize()
        start = time.perf_counter()
        score_images(network, data, data.info, np.arange(count), context.device)
        rate = count / (time.perf_counter() - start)
    yield at_most("GiB", torch.cuda.max_memory_allocated() / 2**30, 30)
    yield at_least("images/s", rate, 500, setting.rated)
    if GPU and not setting.small:
        yield from _score_in_little_memory(network, data)


def _score_in_little_memory(network: Network, data: Dataset) -> Iterator[Row]:
    """With a third of the memory that it took, scoring goes on with fewer images at a time, to the same logits."""
    rows, device = np.arange(images_per_pass(data.info.size)), torch.device("cuda")
    whole = score_images(network, data, data.info, rows, device)
    limit = torch.cuda.max_memory_allocated() / 3 / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit)
    halved = score_images(network, data, data.info, rows, device)
    torch.cuda.set_per_process_memory_fraction(1.0)
    difference = float(np.abs(whole - halved).max() / np.abs(whole).max())
    yield at_most("a third of the memory: difference of logits", difference, 2e-2)
