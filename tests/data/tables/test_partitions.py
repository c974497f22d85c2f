"""A table checked in partitions ends in the validation of a table checked whole, and is never held whole."""

import contextlib
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shipped

from ral.config.dask import DaskTarget
from ral.config.data import DataConfig, ValidateParams
from ral.config.environment import Environment
from ral.data.sources import text
from ral.data.tables import partitions as module
from ral.data.tables.partitions import Partitions, find_repeated, image_sizes
from ral.data.validation import run as validation
from ral.errors import UserError
from ral.files import read_json, write_json

TABLE = "Data_Entry_2017.csv"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps write runs/ into the folder they work in."""
    monkeypatch.chdir(tmp_path)


def verdict_of(data: DataConfig, environment: Environment | None = None) -> dict:
    """The validation of the step, also of data that was refused."""
    from tasks.validate import run

    shutil.rmtree("runs", ignore_errors=True)
    with contextlib.suppress(UserError):
        run(
            ValidateParams(data=data), environment or Environment(state_dir=Path("state")),
            Path("validated"), Path("baseline"),
        )  # fmt: skip
    assert not list(Path().glob(".validated*"))
    (found,) = Path("runs").glob("*/validation.json")
    return read_json(found)


def in_parts(monkeypatch: pytest.MonkeyPatch, rows: int) -> list[int]:
    """Let partitions have about so many rows; returns how many rows Great Expectations is given, call by call."""
    monkeypatch.setattr(module, "ROWS", rows)
    monkeypatch.setattr(text, "CHUNK_ROWS", rows)
    given: list[int] = []
    evaluate = validation.evaluate

    def counting(table: pd.DataFrame, expectations: list) -> list:
        given.append(len(table))
        return evaluate(table, expectations)

    monkeypatch.setattr(validation, "evaluate", counting)
    return given


def spoil(table: pd.DataFrame) -> pd.DataFrame:
    """A phantom's table with every fault, many times over and in every part of it, its rows in any order."""
    rng = np.random.default_rng(5)
    table = table.copy()
    ids = table["Image Index"].to_numpy(object)
    positions = iter(np.split(rng.permutation(len(table)), range(9, len(table), 9)))
    first, second, third = (next(positions) for _ in range(3))
    ids[second] = ids[first]  # twice, or three times, and of different patients
    ids[third[:4]] = ids[first[:4]]
    ids[next(positions)[:6]] = ["a/b.png", "e\u0301.png", "", "x.gif", "gone.png", "gone2.png"]
    table["Image Index"] = ids
    for column, values in {
        "Finding Labels": [
            "Efusion",
            "mass",
            "Mass|No Finding",
            "",
            "Mass,Nodule",
            "No Finding|Edema|Hernia",
        ],
        "Follow-up #": ["first", "-1", "", "3.5", "0", "0"],
        "Patient ID": ["02", "", "x", "1", "1", "2"],
        "Patient Age": ["058Y", "414", "", "130", "0", "999"],
        "Patient Gender": ["male", "", "M", "F", "M", "F"],
        "View Position": ["XX", "", "pa", "LATERAL", "LATERAL", "XX"],
    }.items():
        for value in [*values, *values]:
            table.loc[next(positions)[:2], column] = value
    return table.iloc[rng.permutation(len(table))]


@pytest.fixture
def spoilt(phantom_copy: Path) -> DataConfig:
    """A folder whose table has every fault, with one image empty, one gone, and one that has no row."""
    with tarfile.open(phantom_copy / "images_001.tar.gz") as tar:
        tar.extractall(phantom_copy, filter="data")
    (phantom_copy / "images_001.tar.gz").unlink()
    path = phantom_copy / TABLE
    header = path.read_text().split("\n")[0]
    table = pd.read_csv(path, index_col=False, dtype=str, keep_default_na=False)
    table = spoil(pd.concat([table] * 3, ignore_index=True).assign(**{"Image Index": _distinct(table)}))
    path.write_text(header + "\n" + table.to_csv(index=False, header=False))
    for number, image in enumerate(sorted((phantom_copy / "images").iterdir())[::40]):
        image.unlink() if number % 2 else image.write_bytes(b"")
    (phantom_copy / "images/unlisted.png").write_bytes(b"an image")
    return DataConfig(source="nih", root=str(phantom_copy), missing_images="drop", views=["PA"])


def _distinct(table: pd.DataFrame) -> list[str]:
    """Image ids of three tables of which only the first has images."""
    ids = table["Image Index"].tolist()
    return [*ids, *(f"{turn}{name}" for turn in "ab" for name in ids)]


def test_the_verdict_does_not_depend_on_the_partitions(
    spoilt: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("baseline").mkdir()
    whole = in_parts(monkeypatch, 10_000)
    profile = verdict_of(spoilt)["profile"]
    profile["rows"] *= 2
    profile["labels"]["Mass"] = {"negative": 0.2, "positive": 0.8}
    write_json(Path("baseline/profile.json"), profile)
    expected = verdict_of(spoilt)
    assert whole == [1200, 1200, 1 + 3 + 14]
    # Each check has found something, and most more than is shown.
    checks = {check["check"]: check for check in expected["checks"]}
    assert len(checks) == 18 + 4
    assert [name for name, check in checks.items() if check["passed"]] == []
    assert sum(check["unexpected"] > len(check["samples"]) == 5 for check in checks.values()) >= 12
    assert expected["images_without_row"] > 1 < expected["rows_without_image"]
    given = in_parts(monkeypatch, 250)
    assert verdict_of(spoilt) == expected
    assert len(given) > 4
    assert sum(given[:-1]) == 1200


@pytest.mark.long
def test_a_table_of_many_partitions_is_never_held_whole(
    small_phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = in_parts(monkeypatch, 50)
    chunk_rows = []
    add = Partitions.add
    monkeypatch.setattr(
        Partitions, "add", lambda rows, chunk: chunk_rows.append(len(chunk)) or add(rows, chunk)
    )
    data = DataConfig(source="nih", root=str(small_phantom), missing_images="fail", views=["PA"])
    validation = verdict_of(data)
    assert validation["passed"]
    assert validation["rows"] == sum(given) == sum(chunk_rows) == 400
    assert max(chunk_rows) == 50
    assert len(given) > 5
    assert max(given) < 150  # a patient's rows stay together
    # One page, of the whole table, for people.
    (page,) = Path("runs").glob("*/data_docs/raw_label_table.html")
    assert page.is_file()


@pytest.mark.parametrize(
    "name",
    [
        "vindr",
        "table",
        *(pytest.param(name, marks=pytest.mark.long) for name in ("mimic", "padchest", "chestmnist")),
    ],
)
def test_every_source_has_one_verdict(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataConfig(**shipped.write(name, tmp_path / "images"))
    expected = verdict_of(data)
    assert len(expected["checks"]) > 5
    given = in_parts(monkeypatch, 100)
    assert verdict_of(data) == expected
    assert len(given) > 2


@pytest.mark.long
def test_processes_find_the_same(spoilt: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    expected = verdict_of(spoilt)
    monkeypatch.setattr(module, "ROWS", 400)
    processes = DaskTarget(target="local", workers=2)
    assert verdict_of(spoilt, Environment(state_dir=Path("state"), dask=processes)) == expected


def test_partitions_have_patients_whole_and_rows_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROWS", 60)
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "id": pd.Series([f"f{n}é" for n in rng.integers(0, 800, 1000)], dtype="str"),
            "patient": pd.Series(rng.integers(0, 200, 1000).astype(str), dtype="str"),
            "row": range(2, 1002),
        }
    )
    with Partitions(tmp_path / "rows", "patient") as rows:
        for start in (0, 1, 400, 401):
            rows.add(table[start : {0: 1, 1: 400, 400: 401, 401: 1000}[start]])
        parts = rows.all()
        frames = [part.read() for part in parts]
        ids = [part.read(["id"])["id"] for part in parts]
        again = find_repeated(parts, "id")
        images = pd.DataFrame({"image_id": [*table["id"].unique()[::2], "no row"], "bytes": 7})
        sizes, without_row = image_sizes(parts, "id", images)
        none, _ = image_sizes(parts, "id", images[:0])
    assert not list(tmp_path.iterdir())
    assert 10 < len(parts) < 20
    assert all(frame.index.is_monotonic_increasing for frame in frames)
    pd.testing.assert_frame_equal(pd.concat(frames).sort_index(), table)
    assert sum(frame["patient"].nunique() for frame in frames) == table["patient"].nunique()
    for frame, names, flags, bytes_, nothing in zip(frames, ids, again, sizes, none, strict=True):
        assert names.equals(frame["id"])
        assert flags.tolist() == table["id"].duplicated(keep=False)[frame.index].tolist()
        assert (~np.isnan(bytes_)).tolist() == frame["id"].isin(images["image_id"]).tolist()
        assert np.isnan(nothing).all()
    assert without_row == 1


def test_ids_whose_hashes_meet_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_hashes", lambda values: values.str.len().to_numpy().astype(np.uint64))
    with Partitions(tmp_path / "rows", "patient") as rows:
        rows.add(pd.DataFrame({"id": ["aa", "b", "cc", "aa", "ddd"], "patient": ["p", "q", "p", "rr", "rr"]}))
        assert [flags.tolist() for flags in find_repeated(rows.all(), "id")] == [
            [True, False, False, True, False]
        ]
