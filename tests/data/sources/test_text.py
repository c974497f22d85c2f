"""Label tables as text: nothing may move a label to another column, lose a digit of an id, or end in a trace."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shipped

from ral.config.data import DataConfig, TableConfig
from ral.data.sources import text
from ral.data.sources.base import open_source
from ral.errors import UserError

COLUMNS = ("id", "label")


def write(folder: Path, content: str | bytes, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def error_of(path: Path, columns: tuple[str, ...] = COLUMNS) -> str:
    with pytest.raises(UserError) as caught:
        text.read_text(path, columns)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_rows_are_lines_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, 'id,note,label\na,"two\nlines",1\nb,,0\n\nc,"x ""y"", z",1\r\nd,,0')
    table = text.read_text(path, COLUMNS)
    assert table.to_dict("list") == {
        "id": ["a", "b", "c", "d"],
        "label": ["1", "0", "1", "0"],
        "row": [2, 4, 6, 7],
    }


@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_pieces_are_the_rows_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quote: str, end: str
) -> None:
    """Plain tables and those with quotes are read in two ways, and come out alike."""
    rows = "".join(f"{quote}{n}{quote},{n % 2},NA{end}" for n in range(10))
    path = write(tmp_path, f"\ufeffid,label,note{end}" + rows)
    assert text.scan(path) == (not quote)
    monkeypatch.setattr(text, "BLOCK", 32)  # lines end where they like
    assert text.scan(path) == (not quote)
    assert text.read_text(path, ("id", "note")).iloc[3].tolist() == ["3", "NA", 5]
    whole = text.read_text(path, COLUMNS)
    monkeypatch.setattr(text, "CHUNK_ROWS", 3)
    chunks = list(text.read_chunks(path, COLUMNS))
    assert [len(chunk) for chunk in chunks] == [3, 3, 3, 1]
    pd.testing.assert_frame_equal(pd.concat(chunks, ignore_index=True), whole)
    assert text.read_text(path, ("label",))["label"].tolist() == whole["label"].tolist()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("b,0,1,1", "row 3: it has more fields than the header (4 instead of 3)"),
        ("b,0,1,", "row 3: it has more fields than the header (4 instead of 3)"),
        ("b,0", "row 3: it is truncated (2 fields instead of 3)"),
        ("b", "row 3: it is truncated (1 fields instead of 3)"),
    ],
)
def test_a_row_of_another_length_is_an_error(tmp_path: Path, row: str, words: str) -> None:
    """A decimal comma in a column that nobody reads moved the labels of that row."""
    path = write(tmp_path, f"id,dose,label\na,0,1\n{row}\nc,0,0\n")
    assert words in error_of(path)


# ChestMNIST has arrays, not rows of text.
@pytest.mark.parametrize("name", [name for name in shipped.SHIPPED if name != "chestmnist"])
def test_every_reader_names_the_row_of_another_length(tmp_path: Path, name: str) -> None:
    section = shipped.write(name, tmp_path)
    data = DataConfig(**section)
    for path in open_source(data).tables():
        packed = path.suffix == ".gz"
        content = path.read_bytes()
        lines = (gzip.decompress(content) if packed else content).decode("utf-8-sig").splitlines()
        separator = data.table.separator
        spoilt = "\n".join([*lines[:20], lines[20] + separator + "1", *lines[21:]]).encode()
        path.write_bytes(gzip.compress(spoilt) if packed else spoilt)
        with pytest.raises(UserError, match=r"row 21: it has more fields than the header") as caught:
            open_source(data).read()
        assert path.name in str(caught.value)
        path.write_bytes(content)
    open_source(data).read()


def test_a_column_that_stands_twice_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path, "id,label,label\na,1,0\n")
    assert "has the column `label` more than once" in error_of(path)
    text.read_text(write(tmp_path, "id,label,note,note\na,1,x,y\n"), COLUMNS)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"id,label\n" + b"a,1\n" * 5000 + b"M\xfcller,1\n", "line 5002 contains the byte 0xfc"),
        (b"id,label,note\n" + b"a,1,x\n" * 5000 + b"b,1,M\xfcller\n", "line 5002 contains the byte 0xfc"),
        ("id,label\na,1\n".encode("utf-16"), "is UTF-16 text"),
        ("id,label\na,1\n".encode("utf-16-le"), "is UTF-16 or binary"),
        (gzip.compress(b"id,label\na,1\n"), "is compressed with gzip"),
        (b"PK\x03\x04rest", "a zip archive or an Excel workbook"),
        (b"PAR1rest", "is a Parquet file"),
        (b'id,label\na,1\nb,"open\n' + b"c,1\n" * 10, "in the row that begins at line 3"),
        (b'id,label\na,1\nb,"x" y\n', "in the row that begins at line 3"),
        (b'id,label\na,1\nb,"' + b"x,1\n" * 50_000, "in the row that begins at line 3"),
        (b"id,label\na,1\nb,\xe2\x82", "contains the byte 0xe2"),
        (b"id,label\na,1\n" + b"x" * (20 << 20) + b",1\n", "is not a regular CSV table"),
        (b"", "none of the columns needed"),
        (b'id,"label\n' + b"SECRET,1\n" * 20_000, "the header cannot be read"),
        (b'id,"label\n' + b"SECRET,1\n" * 20, "the header"),
        (b"id,label", "has a header but no rows"),
        (b"id,label\n", "has a header but no rows"),
    ],
    ids=["row", "unread column", "UTF-16", "UTF-16 bare", "gzip", "zip", "Parquet", "quote", "inner", "long", "cut", "huge", "empty", "long header", "open header", "no end", "no rows"],
)  # fmt: skip
def test_what_is_no_utf8_table_is_told_by_file_and_place(tmp_path: Path, content: bytes, words: str) -> None:
    told = error_of(write(tmp_path, content))
    assert words in told
    assert "SECRET" not in told
    assert len(told) < 1000


@pytest.mark.parametrize("damage", ["flip", "cut", "text", "checksum"])
def test_damaged_gzip_is_one_message(tmp_path: Path, damage: str) -> None:
    rng = np.random.default_rng(0)
    plain = "id,label\n" + "".join(f"{n},{x}\n" for n, x in enumerate(rng.integers(0, 10**9, 20_000)))
    content = bytearray(gzip.compress(plain.encode()))
    if damage == "flip":
        for index in range(len(content) // 2, len(content) // 2 + 40):
            content[index] ^= 0xFF
    elif damage == "checksum":
        content[-6] ^= 0xFF
    elif damage == "cut":
        content = content[:-2000]
    else:
        content = bytearray(b"id,label\na,1\n")
    assert "truncated or damaged" in error_of(write(tmp_path, bytes(content), "table.csv.gz"))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_lists_are_told_like_tables(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path, "Röntgen_1.png\nb.png\n".encode(encoding), "test_list.txt")
    with pytest.raises(UserError, match=r"test_list\.txt is (not UTF-8 text: line 1|UTF-16)"):
        text.read_list(path)
    assert text.read_list(write(tmp_path, "\ufeffa.png\r\nRöntgen_1.png\n")) == ["a.png", "Röntgen_1.png"]


def test_nothing_of_a_foreign_file_is_quoted(tmp_path: Path) -> None:
    assert "root" not in error_of(write(tmp_path, "root:x:0:0:root:/root:/bin/bash\nbin:x\n")).replace(
        str(tmp_path), ""
    )


def own(folder: Path, **table: object) -> pd.DataFrame:
    section = {
        "source": "table", "root": str(folder), "missing_images": "drop", "views": ["PA", "AP"],
        "table": {"findings": {"Effusion": "label"}, **table},
    }  # fmt: skip
    source = open_source(DataConfig(**section))
    return source.to_studies(source.read())


def test_one_column_may_play_several_roles(tmp_path: Path) -> None:
    """The image id is the path of the file, or the patient, or the study."""
    write(tmp_path, "file,label,age\na.png,1,43.0\nb.png,0,\n")
    for role in ("path", "patient_id", "study_id"):
        table = {"image_id": "file", "patient_id": "file", role: "file", "age_years": "age"}
        studies = own(tmp_path, **table)
        assert studies["image_id"].tolist() == ["a.png", "b.png"]
        assert studies["age_years"].iloc[0] == 43
        assert np.isnan(studies["age_years"].iloc[1])
    section = {"findings": {"Effusion": "label"}, "image_id": "file", "patient_id": "file", "path": "file"}
    source = open_source(
        DataConfig(source="table", root=str(tmp_path), missing_images="drop", views=["PA"], table=section)
    )
    raw = source.read()
    (tmp_path / "a.png").write_bytes(b"pixels")
    images, _ = source.images(raw[source.image_columns], lambda _: None)
    assert images["image_id"].tolist() == ["a.png"]
    assert source.image_bytes(raw) == 6


def test_no_role_is_played_by_a_column_that_the_pipeline_adds() -> None:
    for change in (
        {"age_years": "row"},
        {"patient_id": "patient_lookalike"},
        {"findings": {"Mass": "image_bytes"}},
    ):
        with pytest.raises(ValueError, match=r"adds its own column `.*`"):
            TableConfig(**change)
    for change in ({"image_id": ""}, {"findings": {"": "mass"}}, {"findings": {"Mass": ""}}):
        with pytest.raises(ValueError, match=r"at least 1 character|has an empty name"):
            TableConfig(**change)
    with pytest.raises(ValueError, match="`m` is used for two findings"):
        TableConfig(findings={"Mass": "m", "Nodule": "m"})


def test_a_table_without_patients_says_so(tmp_path: Path) -> None:
    write(tmp_path, "file,label\na.png,1\n")
    table = {"image_id": "file", "patient_id": "file", "findings": {"Effusion": "label"}}
    source = open_source(
        DataConfig(source="table", root=str(tmp_path), missing_images="drop", views=["PA"], table=table)
    )
    assert not source.layout.patients_known


@pytest.mark.parametrize("name", ["sex", "image_id", "Split", "macro", "source_does_not_matter"])
def test_findings_may_not_be_named_like_the_pipelines_columns(name: str) -> None:
    if name == "source_does_not_matter":
        TableConfig(findings={name: "x"})
        return
    with pytest.raises(ValueError, match="rename the finding"):
        TableConfig(findings={name: "x"})


@pytest.mark.parametrize(
    "name", ["=1+1", "+a", "-a", "@SUM(A1)", "\t=1", "a\rb", "a\n=1", " =1", "\uff1d1", "\x1b[31m"]
)
def test_a_finding_is_no_formula(name: str) -> None:
    with pytest.raises(ValueError, match="rename the finding"):
        TableConfig(findings={name: "x"})
    for kept in ("Mass = 3 cm", "a-b", "Größe", "肺炎", "'=1", 'a, "b"; c'):
        assert TableConfig(findings={kept: "=column"}).findings == {kept: "=column"}


@pytest.mark.parametrize("file", ["/etc/passwd", "../table.csv", "a/../../b.csv"])
def test_a_table_is_below_the_data_folder(file: str) -> None:
    with pytest.raises(ValueError, match="must be relative"):
        TableConfig(file=file)
