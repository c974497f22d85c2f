"""A small data set of people with telling names, some of whom leave, and a search for their traces."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image

from ral.config.dask import DaskTarget
from ral.config.data import DataConfig, PreprocessConfig, PreprocessParams, SplitConfig, ValidateParams
from ral.config.environment import Environment
from ral.data.prepare import prepare

# Who leaves: the first of their images is also that of the next person (`SHARED`), whom they represent when joined.
LEAVING = ("Person0003", "Person0010", "Person0017", "Person0024", "Person0031", "Person0045")
SHARED = {"Person0003": "Person0004", "Person0017": "Person0018", "Person0045": "Person0046"}
PEOPLE, FINDINGS = 80, ("Mass", "Edema", "Hernia")


def write_images(root: Path) -> None:
    """Images in a folder per person, and the table befund.csv; the same bytes at every call."""
    random = np.random.default_rng(0)
    rows, first = [], {}
    for number in range(PEOPLE):
        person = f"Person{number:04}"
        folder = root / "bilder" / person
        folder.mkdir(parents=True)
        official = ("train", "train", "train", "test")[number % 4]
        for index in range(1 + number % 3):
            pixels = random.integers(0, 256, (32, 32), dtype=np.uint8)
            if index == 0:
                owner = next((one for one, other in SHARED.items() if other == person), None)
                pixels = first[owner] if owner else pixels
                first[person] = pixels
                # The two are of one official list, which joining needs.
                official = "train" if person in (*SHARED, *SHARED.values()) else official
            name = f"{person}-{index}"
            Image.fromarray(pixels).save(folder / f"{name}.png")
            labels = [int(random.random() < share) for share in (0.4, 0.3, 0.2)]
            rows.append([name, person, f"bilder/{person}/{name}.png", official, *labels])
    write_table(root, rows)


def write_table(root: Path, rows: list[list[Any]]) -> None:
    """The table of the images."""
    with (root / "befund.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["image", "person", "file", "list", *FINDINGS], *rows])


def remove(root: Path, people: tuple[str, ...] = LEAVING) -> None:
    """Remove their rows from the table; the images stay."""
    with (root / "befund.csv").open(newline="", encoding="utf-8") as stream:
        _, *rows = csv.reader(stream)
    write_table(root, [row for row in rows if row[1] not in people])


def data(root: Path, **changes: Any) -> DataConfig:
    """The section data of the data set."""
    table = {
        "file": "befund.csv", "image_id": "image", "patient_id": "person", "path": "file", "split": "list",
        "findings": {name: name for name in FINDINGS},
    }  # fmt: skip
    section = {
        "source": "table",
        "root": str(root),
        "missing_images": "fail",
        "views": ["PA", "AP"],
        "table": table,
    }
    return DataConfig.model_validate(section | changes)


def chain(config: DataConfig, folder: Path, method: str = "hash", same_image: str = "warn") -> Path:
    """Validate and prepare into a folder; returns the prepared data."""
    from tasks.validate import run

    state, baseline, validated = folder / "state", folder / "baseline", folder / "validated"
    run(ValidateParams(data=config), Environment(state_dir=state), validated, baseline)
    out = folder / "prepared"
    out.mkdir()
    params = PreprocessParams(
        data=config,
        split=SplitConfig(method=method, val=0.2, test=0.2, seed=0, same_image=same_image),
        preprocess=PreprocessConfig(size=16, shard_images=40),
    )
    images = pd.read_parquet(validated / "images.parquet")
    prepare(params, images, out, DaskTarget(workers=1), lambda _: None, state, baseline)
    return out


def texts(folder: Path) -> str:
    """All that can be read in a folder: names, bytes as they are, cells of Parquet and Arrow tables, and metadata."""
    found = []
    for path in sorted(folder.rglob("*")):
        found.append(path.name)
        if not path.is_file():
            continue
        found.append(path.read_bytes().decode("utf-8", errors="ignore"))
        if path.suffix == ".parquet":
            found.append(pd.read_parquet(path).to_csv())
        if path.suffix == ".arrow":
            with pa.memory_map(str(path)) as stream:
                table = pa.ipc.open_file(stream).read_all()
            found.append(str(table.schema))
            found += [str(table[name].to_pylist()) for name in table.column_names if name != "pixels"]
    return "\n".join(found)
