"""`ral predict` against the bare work that it cannot avoid: decoding the images and the network's forward passes.

    python -m benchmarks.predict            # 10,000 images of 64 pixels, 1,000 of 1024: some minutes on two cores
    python -m benchmarks.predict --quick    # 2,000 images of 64 pixels

The network is that of params.yaml with random weights. The bare work has the image files in memory and does nothing but
decode and compute the logits, on the same two threads, in passes of the same size. Predict reads a tar, compares
with the training profile, calibrates, decides and writes CSV in addition. Both run in processes of their own,
alternately; times exclude imports.

Prints a table and, as the last line, JSON: predict_share (rate of predict over the bare rate, median of the repeats, 64
pixels), cpu_share (the same with CPU time; valid on a shared machine too), images_per_second, peak_gib (peak memory of
predict, the highest of all sizes), peak_growth (its peak at all images over that at a fifth of them: 1 is flat), and
predict_share_1024 without --quick.
"""

import argparse
import io
import json
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

WORKERS = 2
SIZE = 64
FINDINGS = 14


def write_images(path: Path, images: int, side: int) -> None:
    """A tar of PNG images that compress about as well as radiographs: smooth, with some noise."""
    from PIL import Image

    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as archive:
        for number in range(images):
            coarse = Image.fromarray(rng.integers(40, 216, (8, 8), dtype=np.uint8))
            smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.int16)
            noisy = (smooth + rng.integers(-4, 5, smooth.shape, dtype=np.int16)).clip(0, 255).astype(np.uint8)
            stream = io.BytesIO()
            Image.fromarray(noisy).save(stream, "PNG")
            member = tarfile.TarInfo(f"images/{number:08d}.png")
            member.size = stream.tell()
            stream.seek(0)
            archive.addfile(member, stream)


def write_model(folder: Path) -> None:
    """A project folder with the network of params.yaml, random weights, calibration and a training profile."""
    import torch
    from safetensors.torch import save_file

    from ral.config.base import load
    from ral.config.train import TrainParams
    from ral.files import write_json
    from ral.models import build_model

    config = load(Path(__file__).parent.parent / "params.yaml", TrainParams).model
    torch.manual_seed(0)
    network = build_model(config, FINDINGS)
    (folder / "models").mkdir(parents=True)
    save_file(network.state_dict(), folder / "models/model.safetensors")
    names = [f"finding {number}" for number in range(FINDINGS)]
    profile = {"views": {"PA": 1}, "image_mean": [0.0, 255.0], "image_deviation": [0.0, 255.0]}
    write_json(
        folder / "models/model.json",
        {
            "model": config.model_dump(),
            "findings": names,
            "size": SIZE,
            "pixel_mean": 128.0,
            "pixel_deviation": 64.0,
            "phantom": True,
            "preparation": {"size": SIZE, "fit": "stretch", "range": "own"},
            "profile": profile,
        },
    )
    entry = {"kind": "platt", "numbers": [1.0, 1.0, 0.0], "knots": [], "thresholds": {"max_f1": 0.5}}
    calibration = {
        "format": 1,
        "data": "phantom",
        "rule": "max_f1",
        "version": "0",
        "findings": dict.fromkeys(names, entry),
    }
    write_json(folder / "reports/calibration.json", calibration)


def predict(archive: Path, model: Path, out: Path) -> None:
    """The command, as users run it."""
    from ral.inference.predict import main

    code = main(
        [str(archive), "--model", str(model), "-o", str(out), "--workers", str(WORKERS), "--device", "cpu"]
    )
    assert code == 0


def bare(archive: Path, model: Path) -> float:
    """Decode and score the images of an archive that is in memory; returns the seconds."""
    import torch

    from ral.data.images.decode import decode
    from ral.inference.released import open_model
    from ral.inference.scoring import CPU_PASS
    from ral.models.inputs import channels_last, normalised

    opened = open_model(model)
    network = opened.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with tarfile.open(archive) as stream:
        contents = [stream.extractfile(member).read() for member in stream]  # type: ignore[union-attr]
    torch.set_num_threads(1)

    def score(start: int) -> None:
        pixels = np.stack([decode(content, SIZE, "") for content in contents[start : start + CPU_PASS]])
        with torch.no_grad():
            network(channels_last(normalised(torch.from_numpy(pixels), opened.info))).numpy()

    started = time.perf_counter()
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(score, range(0, len(contents), CPU_PASS)))
    return time.perf_counter() - started


def child(archive: Path, model: Path, out: Path | None) -> None:
    """Run one of both, and print seconds, CPU seconds and peak memory."""
    import ral.inference.model  # noqa: F401  # the imports are not measured
    from ral.models import import_timm

    import_timm()
    cpu = time.process_time()
    if out is None:
        seconds = bare(archive, model)
    else:
        started = time.perf_counter()
        predict(archive, model, out)
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "cpu": time.process_time() - cpu, "peak_gib": peak}))


def measure(archive: Path, model: Path, out: Path | None) -> dict[str, float]:
    """The numbers of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.predict", "--child", str(archive), str(model)]
    done = subprocess.run(
        command + ([str(out)] if out else []),
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compare(folder: Path, model: Path, images: int, side: int, repeats: int) -> dict[str, float]:
    """Shares, rate and peak memory of predict for images of one size."""
    archive, part = folder / f"{side}.tar", folder / f"{side}_part.tar"
    write_images(archive, images, side)
    write_images(part, images // 5, side)
    rows = []
    for number in range(repeats):
        rows.append((measure(archive, model, folder / f"{side}_{number}.csv"), measure(archive, model, None)))
    small = measure(part, model, folder / f"{side}_part.csv")
    peak = max(row["peak_gib"] for row, _ in rows)
    result = {
        "share": statistics.median(floor["seconds"] / row["seconds"] for row, floor in rows),
        "cpu_share": statistics.median(floor["cpu"] / row["cpu"] for row, floor in rows),
        "images_per_second": images / min(row["seconds"] for row, _ in rows),
        "bare_per_second": images / min(floor["seconds"] for _, floor in rows),
        "peak_gib": peak,
        "peak_growth": peak / small["peak_gib"],
    }
    print(
        f"{images:>8,} {side:>6} {result['images_per_second']:>10,.0f} {result['bare_per_second']:>10,.0f} "
        f"{result['share']:>7.2f} {result['cpu_share']:>9.2f} {peak:>9.2f} {result['peak_growth']:>7.2f}"
    )
    return result


def main() -> None:
    """Measure, and print the table and the JSON line."""
    command = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("--quick", action="store_true", help="2,000 images of 64 pixels")
    command.add_argument("--child", nargs="+", type=Path, help=argparse.SUPPRESS)
    options = command.parse_args()
    if options.child:
        child(options.child[0], options.child[1], options.child[2] if len(options.child) > 2 else None)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "project")
        print("  images   side  predict/s     bare/s   share  cpu share  peak GiB  growth")
        model = folder / "project"
        small = compare(folder, model, 2_000 if options.quick else 10_000, 64, 1 if options.quick else 3)
        numbers = {
            "predict_share": small["share"],
            "cpu_share": small["cpu_share"],
            "images_per_second": small["images_per_second"],
            "peak_gib": small["peak_gib"],
            "peak_growth": small["peak_growth"],
        }
        if not options.quick:
            large = compare(folder, model, 1_000, 1024, 1)
            numbers["predict_share_1024"] = large["share"]
            numbers["peak_gib"] = max(numbers["peak_gib"], large["peak_gib"])
    print(json.dumps({key: round(value, 3) for key, value in numbers.items()}))


if __name__ == "__main__":
    main()
