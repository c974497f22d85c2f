"""RAL's fused pass against a plain eager transcription of its formula: forward and backward, in the same run.

    python -m benchmarks.losses            # CPU with two threads, and CUDA where there is one
    python -m benchmarks.losses --quick    # the two small shapes

Prints a table and, as the last line, a JSON list of {device, shape, ratio, compiled, memory, error}: ratio is
eager time over ours (medians of interleaved runs), compiled the same with both under torch.compile (null with
--quick), memory the peak beyond logits and targets in units of the logits (null if it is too small to
measure), error the largest difference of a gradient to float64, relative to the largest gradient.
"""

import argparse

if __name__ == "__main__":  # before the imports that take seconds: --help needs none of them
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the two small shapes, a few seconds")
    options = parser.parse_args()

import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ral.losses import RAL

SHAPES = [(256, 26), (4096, 45), (8192, 1000), (16384, 10000)]
THREADS = 2
# Share of positives: the mean over NIH ChestX-ray14's findings.
POSITIVES = 0.05
# Minimum number of logits for which a process's peak memory is meaningful on the CPU.
MEASURABLE = 4_000_000
# The eager form needs some 25 tensors of the logits' size; larger shapes run on GPUs only.
CPU_LIMIT = 20_000_000

Peer = Callable[[Tensor, Tensor], Tensor]


def eager(x: Tensor, y: Tensor) -> Tensor:
    """RAL (form code, default options, mean) as a literal transcription of the formula, differentiated by autograd."""
    p = torch.sigmoid(x)
    q = (1 - p + 0.05).clamp(max=1)
    pos = torch.log(p.clamp(min=1e-8)) + (1 - p) - 1.25 * (1 - p) ** 2
    neg = torch.log(q.clamp(min=1e-8)) * (1.5 - p) * p**2 * (1.5 - q)
    loss = y * pos + (1 - y) * neg
    pt = p * y + q * (1 - y)
    gamma = 0 * y + 4 * (1 - y)
    return -(loss * torch.pow(1 - pt, gamma)).mean()


def draw(shape: tuple[int, int], device: str) -> tuple[Tensor, Tensor]:
    """Logits and targets similar to those in the middle of a training."""
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(shape, generator=generator) - 1
    return x.to(device).requires_grad_(), (torch.rand(shape, generator=generator) < POSITIVES).float().to(
        device
    )


def once(loss: Peer, x: Tensor, y: Tensor) -> None:
    """One forward and backward pass."""
    x.grad = None
    loss(x, y).backward()


def ratio(
    device: str, shape: tuple[int, int], seconds: float, peers: tuple[Peer, Peer]
) -> tuple[float, float, float]:
    """Median seconds of two losses, and their ratio, from interleaved runs of about `seconds`."""
    x, y = draw(shape, device)
    times: dict[Peer, list[float]] = {peer: [] for peer in peers}
    for loss in times:
        for _ in range(3):
            once(loss, x, y)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[peers[0]]) < 5:
        for loss, seconds_per_run in times.items():
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            once(loss, x, y)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds_per_run.append(time.perf_counter() - start)
    plain, ours = (statistics.median(runs) for runs in times.values())
    return plain, ours, plain / ours


def graph_seconds(loss: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, int], runs: int = 50) -> float:
    """Seconds of a pass on the GPU without the time to launch it: replays of a CUDA graph."""
    x, y = draw(shape, "cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            once(loss, x, y)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    x.grad = None
    with torch.cuda.graph(graph):
        loss(x, y).backward()
    graph.replay()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(runs):
        graph.replay()
    end.record()
    end.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / runs / 1e3


def memory(
    device: str, shape: tuple[int, int], loss: Callable[[Tensor, Tensor], Tensor] | None = None
) -> float | None:
    """Peak memory of a pass beyond logits and targets, the gradient included, in units of the logits.

    Args:
        device: "cuda" or "cpu".
        shape: of the logits.
        loss: None: our RAL. Another one is measured on GPUs only.
    """
    size = shape[0] * shape[1] * 4
    if device == "cuda":
        loss = RAL() if loss is None else loss  # a compiled loss has no truth value
        x, y = draw(shape, device)
        once(loss, x, y)
        x.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        once(loss, x, y)
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / size
    if size // 4 < MEASURABLE:
        return None
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (shape,)) / size


def _peak(shape: tuple[int, int]) -> int:
    """Peak memory of one pass above the process's memory before it, in bytes (Linux)."""
    torch.set_num_threads(THREADS)
    x, y = draw(shape, "cpu")
    once(RAL(), x[:64].detach().requires_grad_(), y[:64])
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before = _resident("VmRSS")
    once(RAL(), x, y)
    return _resident("VmHWM") - before


def _resident(kind: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) * 1024


def error(device: str, shape: tuple[int, int]) -> float:
    """Largest difference of our float32 gradient to that of the same logits in float64, relative to the largest one."""
    x, y = draw(shape, device)
    x, y = x[:4096].detach().requires_grad_(), y[:4096]
    once(RAL(), x, y)
    exact = x.detach().double().requires_grad_()
    once(RAL(), exact, y)
    assert x.grad is not None
    assert exact.grad is not None
    return float((x.grad.double() - exact.grad).abs().max() / exact.grad.abs().max())


def main(options: argparse.Namespace) -> None:
    """Measure and print."""
    quick = options.quick
    torch.set_num_threads(THREADS)
    rows = []
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    print(
        f"torch {torch.__version__}, {platform.processor() or platform.machine()}, {THREADS} threads; {cuda}"
    )
    print(
        f"{'device':8}{'shape':>14}{'eager ms':>12}{'ours ms':>12}{'ratio':>8}"
        f"{'compiled':>10}{'memory':>9}{'error':>10}"
    )
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        for shape in SHAPES[:2] if quick else SHAPES:
            if device == "cpu" and shape[0] * shape[1] > CPU_LIMIT:
                print(
                    f"{device:8}{shape[0]:>7} x {shape[1]:<5} skipped: the eager form needs 16 GB",
                    file=sys.stderr,
                )
                continue
            plain, ours, times = ratio(device, shape, 2 if quick else 8, (eager, RAL()))
            compiled = None
            if not quick:
                torch.compiler.reset()
                compiled = ratio(device, shape, 8, (torch.compile(eager), torch.compile(RAL())))[2]
            peak, off = memory(device, shape), error(device, shape)
            rows.append(
                {"device": device, "shape": list(shape), "ratio": round(times, 2),
                 "compiled": None if compiled is None else round(compiled, 2),
                 "memory": None if peak is None else round(peak, 2), "error": off}
            )  # fmt: skip
            text, fused = ("-" if value is None else f"{value:.2f}" for value in (peak, compiled))
            name = f"{shape[0]} x {shape[1]}"
            print(
                f"{device:8}{name:>14}{plain * 1e3:12.3f}{ours * 1e3:12.3f}{times:8.2f}{fused:>10}{text:>9}{off:10.1e}"
            )
    print(json.dumps(rows))


if __name__ == "__main__":
    main(options)
