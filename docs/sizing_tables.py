"""Prints the tables of docs/sizing.md: hours, disk and memory at four sizes, from what was measured and what you give.

python docs/sizing_tables.py
python docs/sizing_tables.py --images-per-second 900 --gpus 8 --packing-cores 64 --epochs 20
"""

import argparse

IMAGES = {"112k": 112_120, "377k": 377_110, "10M": 10_000_000, "1B": 1_000_000_000}

# Measured on two cores of an x86-64 machine (docs/images.md, docs/training.md, docs/evaluation.md): images/s, and seconds.
PACKING = 187.6 / 2  # per core: 1024 x 1024 PNG to 224 x 224, single files
INPUT = 662 / 2  # per core: augmented batches of 224 x 224 from shards
TRAINING = 128 / 0.275  # two cores: resnet10t, 64 x 64, batch 128
EVALUATION = 8 / 2_922  # seconds per test image, one core: 2,000 replicates with BCa, 14 findings, audit

# Bytes.
VALIDATE = 484e6 / 400_000  # memory per row: Great Expectations on 400,000 rows
LISTED = 130  # memory per image of preprocess's list
SPLIT_FILE = 6.9  # baseline/split.parquet per patient, measured on 30,805
LOGITS_FILE = 90  # baseline/test_logits.parquet per test image, 14 findings, measured on 25,596
MD5 = 0.65e9  # per second and core, as measured: DVC hashes every output once

# Shares of an 80/20 split of which an eighth of the 80 is validation, and images per patient, as in NIH ChestX-ray14.
TRAIN, TEST, IMAGES_PER_PATIENT = 0.7, 0.2, 3.64


def pixels(size: int) -> int:
    """Bytes of an image in a shard: one per pixel."""
    return size * size


def rows(header: list[str], lines: list[list[str]]) -> str:
    """A Markdown table; numbers to the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *lines])


def hours(seconds: float) -> str:
    """Seconds as hours, or minutes, with two digits."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:,.0f} h" if seconds >= 36_000 else f"{seconds / 3600:.1f} h"


def amount(size: float) -> str:
    """Bytes in a unit that fits."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} PB"


def time_table(cores: int, rate: float, gpus: int, epochs: int) -> str:
    """Hours of each stage."""
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
            f"{epochs} epochs, {gpus} GPUs of {rate:g} images/s (yours)",
            *(hours(epochs * n * TRAIN / (gpus * rate)) for n in IMAGES.values()),
        ],
        ["evaluate, 1 core", *(hours(n * TEST * EVALUATION) for n in IMAGES.values())],
        [
            "DVC hashing of the shards, 224 px, 1 core",
            *(hours(n * pixels(224) / MD5) for n in IMAGES.values()),
        ],
    ]
    return rows(header, lines)


def disk_table() -> str:
    """Disk of pixels, and files that git and pandas hold."""
    sizes = (64, 224, 512)
    lines = [
        [
            f"shards, {size} px ({pixels(size):,} B an image)",
            *(amount(n * pixels(size)) for n in IMAGES.values()),
        ]
        for size in sizes
    ]
    lines += [
        ["validate's memory", *(amount(n * VALIDATE) for n in IMAGES.values())],
        ["preprocess's list of images, memory", *(amount(n * LISTED) for n in IMAGES.values())],
        [
            "`baseline/split.parquet`, in git",
            *(amount(n / IMAGES_PER_PATIENT * SPLIT_FILE) for n in IMAGES.values()),
        ],
        [
            "`baseline/test_logits.parquet`, in git",
            *(amount(n * TEST * LOGITS_FILE) for n in IMAGES.values()),
        ],
        ["shards of 4,096 images", *(f"{-(-n // 4096):,}" for n in IMAGES.values())],
    ]
    return rows(["", *IMAGES], lines)


def feeding_table() -> str:
    """Cores that augmentation needs for a GPU."""
    rates = (250, 500, 1000, 2000)
    return rows(
        ["images/s of a GPU", *(f"{rate:,}" for rate in rates)],
        [["cores for its input", *(f"{-(-rate // INPUT):.0f}" for rate in rates)]],
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images-per-second", type=float, default=500, help="of one GPU, as you measured (500)"
    )
    parser.add_argument("--gpus", type=int, default=8, help="GPUs (8)")
    parser.add_argument("--packing-cores", type=int, default=64, help="cores that decode (64)")
    parser.add_argument("--epochs", type=int, default=10, help="epochs (10)")
    given = parser.parse_args()
    print(time_table(given.packing_cores, given.images_per_second, given.gpus, given.epochs))
    print()
    print(feeding_table())
    print()
    print(disk_table())


if __name__ == "__main__":
    main()
