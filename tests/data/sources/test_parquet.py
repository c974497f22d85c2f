"""Parquet tables: each part is read by its own types; no value is changed to fit another's, no digit is lost."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ral.data.sources import text
from ral.data.sources.parquet import parquet_files, read_parquet_chunks
from ral.errors import UserError

COLUMNS = ("id", "label")


def write(path: Path, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def read(path: Path, *columns: str) -> pd.DataFrame:
    return pd.concat(read_parquet_chunks(path, columns or COLUMNS), ignore_index=True)


def error_of(path: Path, *columns: str) -> str:
    with pytest.raises(UserError) as caught:
        read(path, *columns)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_parquet_types_read_as_their_text(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.parquet",
        id=pa.array([1234567890123456789, None], pa.int64()),
        unsigned=pa.array([2**64 - 1, None], pa.uint64()),
        whole=pa.array([58.0, None], pa.float64()),
        half=pa.array([0.5, float("nan")], pa.float32()),
        zero=pa.array([-0.0, None], pa.float64()),
        truth=pa.array([True, None], pa.bool_()),
        text=pa.array(["ä ", None], pa.string()),
        category=pa.array(["M", None], pa.string()).dictionary_encode(),
        decimal=pa.array([7, None], pa.decimal128(10, 0)),
        nothing=pa.nulls(2),
    )
    columns = pq.read_schema(path).names
    table = read(path, *columns)
    assert table.drop(columns="row").iloc[0].tolist() == [
        "1234567890123456789", "18446744073709551615", "58", "0.5", "0", "True", "ä ", "M", "7", "",
    ]  # fmt: skip
    assert table.drop(columns="row").iloc[1].tolist() == [""] * 10
    assert table["row"].tolist() == [1, 2]


def test_ids_that_lost_digits_and_other_types_are_refused(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.parquet",
        id=pa.array([1.2345678901234567e18, None]),
        label=pa.array([[1], [0]]),
        raw=pa.array([b"a", b"b"], pa.binary(1)),
        bad=pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xffb")),
    )
    assert "`id` contains integers of 16 digits or more as floating point" in error_of(path, "id")
    assert "`label` is of type list" in error_of(path, "label")
    assert "`raw` is of type fixed_size_binary" in error_of(path, "raw")
    assert "`bad` cannot be read as text" in error_of(path, "bad")


def test_a_folder_of_parts_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    folder = tmp_path / "table.parquet"
    write(folder / "part.1.parquet", id=["c"], label=["1"])
    write(folder / "part.0.parquet", id=["a", "b"], label=["1", "0"])
    for ignored in ("_SUCCESS", "._part.0.parquet", ".part.0.parquet.crc", "README.md"):
        (folder / ignored).write_text("no table")
    table = read(folder)
    assert (table["id"].tolist(), table["row"].tolist()) == (["a", "b", "c"], [1, 2, 3])
    assert [path.name for path in parquet_files(folder)] == ["part.0.parquet", "part.1.parquet"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"a folder without a \.parquet file"):
        parquet_files(tmp_path / "empty")


def test_no_part_is_changed_to_fit_another(tmp_path: Path) -> None:
    """A truth value's type made 1 of −1, a whole number's made 7 of 007, and an id of two types was two patients."""
    folder = tmp_path / "table.parquet"
    write(folder / "a.parquet", id=pa.array([7], pa.int64()), label=pa.array([True]))
    write(folder / "b.parquet", id=pa.array(["007"]), label=pa.array([-1], pa.int64()))
    write(folder / "c.parquet", id=pa.array([float("nan")]), label=pa.array([0.0]))
    table = read(folder)
    assert table["id"].tolist() == ["7", "007", ""]
    assert table["label"].tolist() == ["True", "-1", "0"]
    write(folder / "d.parquet", id=pa.array([1.2345678901234567e18]), label=pa.array([0.0]))
    with pytest.raises(UserError, match=r"d\.parquet.*loses digits"):
        read(folder)


def test_every_part_must_have_the_columns_once(tmp_path: Path) -> None:
    folder = tmp_path / "table.parquet"
    write(folder / "a.parquet", id=["a"], label=["1"])
    write(folder / "b.parquet", id=["b"])
    with pytest.raises(UserError, match=r"b\.parquet lacks the column `label`"):
        read(folder)
    pq.write_table(pa.table([["b"], ["1"], ["0"]], names=["id", "label", "label"]), folder / "b.parquet")
    with pytest.raises(UserError, match=r"b\.parquet has the column `label` more than once"):
        read(folder)


def test_folders_that_name_a_value_keep_its_text(tmp_path: Path) -> None:
    folder = tmp_path / "table.parquet"
    for name in ("id=007", "id=7", "id=a%2Fb", "id=__HIVE_DEFAULT_PARTITION__"):
        write(folder / name / "part.parquet", label=["1"])
    assert sorted(read(folder)["id"]) == ["", "007", "7", "a/b"]


def test_small_row_groups_become_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(
        pa.table({"id": [str(n) for n in range(100)], "label": ["1"] * 100}), path, row_group_size=3
    )
    monkeypatch.setattr(text, "CHUNK_ROWS", 40)
    chunks = list(read_parquet_chunks(path, COLUMNS))
    assert [len(chunk) for chunk in chunks] == [40, 40, 20]
    whole = pd.concat(chunks)
    assert whole["id"].tolist() == [str(n) for n in range(100)]
    assert whole["row"].tolist() == list(range(1, 101))


def test_damaged_and_empty_parquet(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", id=["a"], label=["1"])
    path.write_bytes(path.read_bytes()[:-20])
    assert "is not a Parquet file, or is damaged" in error_of(path)
    write(path, id=pa.array([], pa.string()), label=pa.array([], pa.string()))
    assert "has no rows" in error_of(path)
