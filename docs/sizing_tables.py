"""Print the tables of docs/sizing.md: time, disk and memory for four dataset sizes, from measurements and your options.

python docs/sizing_tables.py
python docs/sizing_tables.py --images-per-second 900 --gpus 8 --packing-cores 64 --epochs 20
"""

import argparse

IMAGES = {"112k": 112_120, "377k": 377_110, "10M": 10_000_000, "1B": 1_000_000_000}

# Measured on two cores of an x86-64 machine (docs/images.md, docs/training.md, docs/evaluation.md): images/s,
# or seconds.
PACKING = 492 / 2  # per core: 1024 x 1024 PNG to 224 x 224, single files
TRAINING = 128 / 0.275  # on two cores: resnet10t, 64 x 64, batch 128, augmentation included
EVALUATION = 8 / 2_922  # seconds per test image, one core: 2,000 replicates with BCa, 14 findings, audit

# Bytes.
# validate's peak memory on tables of 2 and 11 million rows (docs/sources.md): per row, and the rest. The rest
# is mainly one partition of 500,000 rows, so it is an upper bound for smaller tables.
VALIDATE_ROW = (2.46 - 1.18) * 2**30 / 9e6
VALIDATE_REST = 1.18 * 2**30 - 2e6 * VALIDATE_ROW
LISTED = 130  # memory per image of preprocess's image list
SPLIT_FILE = 6.9  # baseline/split.parquet per patient, measured on 30,805
LOGITS_FILE = 90  # baseline/test_logits.parquet per test image, 14 findings, measured on 25,596
MD5 = 0.65e9  # bytes/s per core, measured: DVC hashes every output once

# `python -m benchmarks.scale` on two cores and 24 GiB, with 1 and 10 million images of 8 px and 14 findings: what a
# rank of a training holds in memory and computes, besides pixels, network and imports. Memory per image and the rest,
# from both sizes; CPU seconds from 10 million images: per image, per training image, per validation image.
RANK_ROW = (410e6 - 90e6) / 9e6
RANK_REST = 90e6 - 1e6 * RANK_ROW
RANK_OPEN = (1.10 + 1.89 + 0.96) / 1e7
RANK_EPOCH = (0.60 + 47.0) / 8e6
RANK_METRICS = 5.12 / 1e6  # for one set of weights

# Fractions of a 70/10/20 split, and images per patient as in NIH ChestX-ray14.
TRAIN, VAL, TEST, IMAGES_PER_PATIENT = 0.7, 0.1, 0.2, 3.64


def pixels(size: int) -> int:
    """Bytes of an image in a shard: one per pixel."""
    return size * size


def rows(header: list[str], lines: list[list[str]]) -> str:
    """A Markdown table; numbers are right-aligned."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *lines])


def hours(seconds: float) -> str:
    """Seconds as text in hours, minutes or seconds."""
    if seconds < 1:
        return "< 1 s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.0f} h" if seconds >= 36_000 else f"{seconds / 3600:.1f} h"


def amount(size: float) -> str:
    """Bytes as text in the largest suitable unit."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} PB"


def time_table(cores: int, rate: float, gpus: int, epochs: int) -> str:
    """Time of each stage."""
    header = ["", *IMAGES]
    both = 2 * PACKING
    lines = [
        ["packing, 2 cores (measured)", *(hours(n / both) for n in IMAGES.values())],
        [f"packing, {cores} cores", *(hours(n / (cores * PACKING)) for n in IMAGES.values())],
        [
            "an epoch, 2 cores, small network at 64 px (measured)",
            *(hours(n * TRAIN / TRAINING) for n in IMAGES.values()),
        ],
        [
            f"{epochs} epochs, {gpus} GPUs of {rate:g} images/s (assumed)",
            *(hours(epochs * n * TRAIN / (gpus * rate)) for n in IMAGES.values()),
        ],
        ["evaluate, 1 core", *(hours(n * TEST * EVALUATION) for n in IMAGES.values())],
        [
            "DVC hashing of the shards, 224 px, 1 core",
            *(hours(n * pixels(224) / MD5) for n in IMAGES.values()),
        ],
    ]
    return rows(header, lines)


def rank_table() -> str:
    """What a rank of a training holds and computes besides pixels and network."""
    counts = IMAGES.values()
    lines = [
        ["memory of each rank", *(amount(RANK_REST + n * RANK_ROW) for n in counts)],
        ["opening the data: once, each rank", *(hours(n * RANK_OPEN) for n in counts)],
        ["an epoch's order and micro-batches, 1 rank", *(hours(n * TRAIN * RANK_EPOCH) for n in counts)],
        [
            "validation metrics of an epoch with EMA, 1 rank",
            *(hours(n * VAL * 2 * RANK_METRICS) for n in counts),
        ],
    ]
    return rows(["", *IMAGES], lines)


def disk_table() -> str:
    """Disk space of the pixels, memory of tables, and size of files in git."""
    sizes = (64, 224, 512)
    lines = [
        [
            f"shards, {size} px ({pixels(size):,} B per image)",
            *(amount(n * pixels(size)) for n in IMAGES.values()),
        ]
        for size in sizes
    ]
    lines += [
        ["validate, peak memory", *(amount(VALIDATE_REST + n * VALIDATE_ROW) for n in IMAGES.values())],
        ["preprocess, memory of the image list", *(amount(n * LISTED) for n in IMAGES.values())],
        [
            "`baseline/split.parquet`, in git",
            *(amount(n / IMAGES_PER_PATIENT * SPLIT_FILE) for n in IMAGES.values()),
        ],
        [
            "`baseline/test_logits.parquet`, in git",
            *(amount(n * TEST * LOGITS_FILE) for n in IMAGES.values()),
        ],
        ["number of shards of 4,096 images", *(f"{-(-n // 4096):,}" for n in IMAGES.values())],
    ]
    return rows(["", *IMAGES], lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images-per-second",
        type=float,
        default=500,
        help="throughput of one GPU as measured by you (default: 500)",
    )
    parser.add_argument("--gpus", type=int, default=8, help="number of GPUs (default: 8)")
    parser.add_argument("--packing-cores", type=int, default=64, help="CPU cores for packing (default: 64)")
    parser.add_argument("--epochs", type=int, default=10, help="number of epochs (default: 10)")
    args = parser.parse_args()
    print(time_table(args.packing_cores, args.images_per_second, args.gpus, args.epochs))
    print()
    print(rank_table())
    print()
    print(disk_table())


if __name__ == "__main__":
    main()
