"""runs.csv and scales.csv: one row per finished run, appended atomically; the commit of the code."""

import csv
import hashlib
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.study.plan import Row
from ral.errors import UserError
from ral.files import atomic_write

COLUMNS = (
    "run", "stage", "arm", "fold", "seed", "learning_rate", "backbone", "parameters", "image_size", "epochs",
    "batch_size", "precision", "thin", "train_images", "selection_images", "test_images", "best_epoch",
    "selection_macro_ap", "selection_macro_auroc", "test_macro_ap", "test_macro_auroc", "seconds",
    "images_per_second", "device", "torch", "commit", "data", "logits",
)  # fmt: skip
SCALES = ("arm", "scale", "backbone", "image_size")
RUNS_FILE, SCALES_FILE = "runs.csv", "scales.csv"


def read_rows(path: Path, columns: Sequence[str] = COLUMNS) -> list[Row]:
    """The rows of a table; empty if there is no file.

    Raises:
        UserError: it has other columns.
    """
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        if tuple(reader.fieldnames or ()) != tuple(columns):
            raise UserError(f"{path} has other columns than {', '.join(columns)}. Restore it.")
        return list(reader)


def write_rows(path: Path, rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> None:
    """Write a table atomically: after a kill at any point, the file is the old or the new one."""
    with atomic_write(path) as draft, draft.open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def check_rows(rows: Sequence[Row], data: str, path: Path) -> None:
    """Check that rows are of the study's images.

    Raises:
        UserError: one is of other images.
    """
    for row in rows:
        if row["data"] != data:
            raise UserError(
                f"{path}: the run {row['run']} is of other images ({row['data']}, these are {data}). Use the "
                "prepared images of that run, or another --results folder."
            )


def read_scales(path: Path, backbone: str, size: int) -> dict[str, float]:
    """Arm -> scale of its loss, of those measured with a backbone and an image size."""
    return {
        row["arm"]: float(row["scale"])
        for row in read_rows(path, SCALES)
        if (row["backbone"], int(row["image_size"])) == (backbone, size)
    }


def add_scale(path: Path, row: Mapping[str, str]) -> None:
    """Add a measured scale, unless it is there."""
    rows = read_rows(path, SCALES)
    key = ("arm", "backbone", "image_size")
    if all([other[name] for name in key] != [row[name] for name in key] for other in rows):
        write_rows(path, [*rows, row], SCALES)


def digest(content: bytes) -> str:
    """First 16 digits of the SHA-256 of a logits file's content."""
    return hashlib.sha256(content).hexdigest()[:16]


def logits_hash(path: Path) -> str:
    """First 16 digits of the SHA-256 of a logits file."""
    return digest(path.read_bytes())


def commit() -> str:
    """The commit of the code, with `+` if tracked files other than results differ from it; unknown without git."""
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no", "--", ":!docs/results"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
