"""Compares what two checkouts made of the default chain, through a map of renamed files, keys and columns.

    python tests/same_outputs.py ../before .      # data/, models/ and reports/ of both; exit code 1 on a difference

For a change that renames and moves code and must change no number: tensors, pixels, logits and metrics are equal to the
bit. Hashes of files that hold renamed words are left out.
"""

import argparse
from pathlib import Path

if __name__ == "__main__":  # before the imports that take seconds: --help needs none of them
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, help="folder of a run")
    parser.add_argument("after", type=Path, help="folder of another run")
    options = parser.parse_args()

import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from safetensors.numpy import load_file

# Old file -> new file, where its name has changed.
FILES = {
    "data/validated/verdict.json": "data/validated/validation.json",
    "data/validated/films.parquet": "data/validated/images.parquet",
    "models/weights/average.safetensors": "models/weights/ema.safetensors",
}
# Old word -> new word in keys, columns and values, longest first.
WORDS = {
    "geometry_films": "geometry_images",
    "passed_over": "skipped_steps",
    "average_val": "ema_val",
    "films": "images",
    "film": "image",
    "Film": "Image",
}
# Keys and columns of hashes of files that hold renamed words, the README of the phantom, and free text.
SKIPPED = {"sha256", "digest", "content", "profile_sha256", "README.txt"}
TEXT = {"check", "remedy", "sentence", "note", "notice", "reason", "samples", "not_estimable"}


def renamed(text: str) -> str:
    """A word, key or value with the names of today."""
    for old, new in WORDS.items():
        text = text.replace(old, new)
    return "ema" if text == "average" else text


def differences(before: Path, after: Path) -> Iterator[str]:
    """What differs between the outputs in two project folders, a line each."""
    for path in sorted(path for top in ("data", "models", "reports") for path in (before / top).rglob("*")):
        name = path.relative_to(before).as_posix()
        other = after / FILES.get(name, renamed(name))
        if path.is_dir() or path.suffix in (".html", ".md", ".txt") or path.name == ".gitignore":
            continue
        if not other.is_file():
            yield f"{name}: there is no {other.relative_to(after)}"
        elif path.suffix == ".json":
            yield from compare(name, json.loads(path.read_text()), json.loads(other.read_text()))
        elif path.suffix in (".csv", ".parquet"):
            yield from compare_tables(name, table(path), table(other))
        elif path.suffix == ".safetensors":
            yield from compare_arrays(name, load_file(path), load_file(other))
        elif path.suffix == ".arrow":
            yield from compare_arrays(name, shard(path), shard(other))
        elif path.read_bytes() != other.read_bytes():
            yield f"{name}: other bytes"


def compare(where: str, old: Any, new: Any) -> Iterator[str]:
    """Differences of two JSON values."""
    if isinstance(old, dict) and isinstance(new, dict):
        mapped = {renamed(key): value for key, value in old.items()}
        if mapped.keys() != new.keys():
            yield f"{where}: keys {sorted(mapped.keys() ^ new.keys())}"
        for key in mapped.keys() & new.keys() - SKIPPED - TEXT:
            yield from compare(f"{where}: {key}", mapped[key], new[key])
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from compare(f"{where}[{index}]", one, other)
    elif (renamed(old) if isinstance(old, str) else old) != new:
        yield f"{where}: {str(old)[:80]!r} -> {str(new)[:80]!r}"


def table(path: Path) -> pd.DataFrame:
    """A CSV or Parquet file."""
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    return pd.read_csv(path)


def compare_tables(where: str, old: pd.DataFrame, new: pd.DataFrame) -> Iterator[str]:
    """Differences of two tables."""
    old = old.rename(columns=renamed)
    if list(old.columns) != list(new.columns):
        yield f"{where}: columns {list(old.columns)} -> {list(new.columns)}"
    for column in old.columns.intersection(new.columns).difference([*SKIPPED, *TEXT]):
        own = old[column]
        if own.dtype == object or str(own.dtype) == "str":
            own = own.map(lambda value: renamed(value) if isinstance(value, str) else value)
        if len(own) != len(new) or not own.equals(new[column]):
            yield f"{where}: column {column} differs"


def shard(path: Path) -> dict[str, np.ndarray]:
    """Ids and pixels of a shard."""
    read = pa.ipc.open_file(path).read_all()
    return {
        name: np.array(read.column(name).to_pylist(), dtype=object if name == "image_id" else None)
        for name in read.column_names
    }


def compare_arrays(where: str, old: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> Iterator[str]:
    """Differences of arrays by name."""
    if old.keys() != new.keys():
        yield f"{where}: names {sorted(old.keys() ^ new.keys())}"
    for name in old.keys() & new.keys():
        if old[name].dtype != new[name].dtype or not np.array_equal(old[name], new[name]):
            yield f"{where}: {name} differs"


def main(options: argparse.Namespace) -> None:
    """Print the differences; exit code 1 if there are any."""
    found = list(differences(options.before, options.after))
    for line in found[:100]:
        print(line)
    print(f"{len(found)} differences")
    sys.exit(bool(found))


if __name__ == "__main__":
    main(options)
