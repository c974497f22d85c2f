"""NIH ChestX-ray14 as it ships: header, labels, lists."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ral.config.data import DataConfig
from ral.data.sources import nih
from ral.errors import UserError
from ral.labels import NIH_FINDINGS

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
ROW = "00000001_000.png,Cardiomegaly|Emphysema,0,1,58,M,PA,2682,2749,0.143,0.143"


def table(folder: Path, *rows: str, header: str = HEADER, name: str = "Data_Entry_2017.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def reader(root: Path) -> nih.Reader:
    return nih.Reader(DataConfig(source="nih", root=str(root), missing_images="fail", views=["PA", "AP"]))


def studies_of(root: Path) -> pd.DataFrame:
    source = reader(root)
    return source.to_studies(source.read())


def test_reads_what_nih_ships(tmp_path: Path) -> None:
    # The edition of 2017 ends its header and its rows with a comma.
    for header, row in [(HEADER, ROW), (HEADER + ",", ROW + ",")]:
        table(tmp_path, row, header=header)
        studies = studies_of(tmp_path)
        first = studies.iloc[0]
        assert (first.image_id, first.patient_id, first.study_id) == ("00000001_000.png", "1", "1_0")
        assert (first.view, first.sex, first.age_years) == ("PA", "M", 58)
        assert [name for name in NIH_FINDINGS if first[name] == 1] == ["Emphysema", "Cardiomegaly"]
        assert sum(first[name] for name in NIH_FINDINGS) == 2


def test_impossible_age_becomes_unknown_and_no_finding_is_no_label(tmp_path: Path) -> None:
    row = "a.png,No Finding,0,1,414,F,AP,1,1,1,1"
    table(tmp_path, row)
    studies = studies_of(tmp_path)
    assert np.isnan(studies["age_years"].iloc[0])
    assert studies[list(NIH_FINDINGS)].to_numpy().sum() == 0


def test_multi_hot_equals_a_plain_reading_of_the_real_table(real_images: Path) -> None:
    source = reader(real_images)
    raw = source.read()
    studies = source.to_studies(raw)
    plain = raw["Finding Labels"].str.get_dummies("|")
    assert len(studies) == 112_120
    assert studies["patient_id"].nunique() == 30_805
    pd.testing.assert_frame_equal(
        studies[list(NIH_FINDINGS)].astype(int), plain[list(NIH_FINDINGS)].astype(int), check_names=False
    )


@pytest.mark.parametrize("column", nih.COLUMNS)
def test_absent_column_is_named(tmp_path: Path, column: str) -> None:
    path = table(tmp_path, ROW, header=HEADER.replace(column, "Something"))
    with pytest.raises(UserError) as caught:
        reader(tmp_path).read()
    assert f"{path} lacks the column `{column}`" in str(caught.value)


def test_empty_tables(tmp_path: Path) -> None:
    table(tmp_path)
    with pytest.raises(UserError, match="header but no rows"):
        reader(tmp_path).read()
    (tmp_path / "Data_Entry_2017.csv").write_text("")
    with pytest.raises(UserError, match="none of the columns needed"):
        reader(tmp_path).read()


def test_irregular_row_and_no_text(tmp_path: Path) -> None:
    table(tmp_path, ROW, '"b.png,open quote')
    with pytest.raises(UserError, match="not a regular CSV"):
        reader(tmp_path).read()
    (tmp_path / "Data_Entry_2017.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="not UTF-8"):
        reader(tmp_path).read()


def test_folder_and_table_are_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist. Set data\.root"):
        reader(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has no label table"):
        reader(tmp_path).tables()
    table(tmp_path, ROW)
    assert reader(tmp_path).tables()[0].name == "Data_Entry_2017.csv"
    table(tmp_path, ROW, name="Data_Entry_2017_v2020.csv")
    with pytest.raises(UserError, match="keep one"):
        reader(tmp_path).tables()


def test_official_split_is_that_of_the_lists(small_phantom: Path) -> None:
    studies = studies_of(small_phantom)
    official = reader(small_phantom).official(studies)
    test = set((small_phantom / "test_list.txt").read_text().split())
    assert set(studies["image_id"][official == "test"]) == test
    assert set(official) == {"train", "test"}


def test_lists(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train_val_list\.txt is missing"):
        nih.read_lists(tmp_path)
    (tmp_path / "train_val_list.txt").write_text("a.png\nb.png")
    (tmp_path / "test_list.txt").write_text("")
    with pytest.raises(UserError, match=r"test_list\.txt is empty"):
        nih.read_lists(tmp_path)
    (tmp_path / "test_list.txt").write_text("c.png\r\n")
    assert nih.read_lists(tmp_path) == ({"a.png", "b.png"}, {"c.png"})
    (tmp_path / "test_list.txt").write_text("b.png")
    with pytest.raises(UserError, match=r"b\.png is on both"):
        nih.read_lists(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("Cardiomegaly|Emphysema", '"Cardiomegaly|Emphysema"'),
        lambda text: text.replace("[x,y]", "[x,y],Name").replace("0.143\n", "0.143,Jones\n"),
    ],
    ids=["byte order mark", "CRLF", "quoted bars", "extra column"],
)
def test_harmless_ways_to_write_the_table(tmp_path: Path, change) -> None:
    path = table(tmp_path, ROW)
    expected = studies_of(tmp_path)
    text = path.read_text()
    path.write_text(change(text), encoding="utf-8", newline="")
    assert path.read_bytes() != text.encode()
    pd.testing.assert_frame_equal(studies_of(tmp_path), expected)
    assert "row" in reader(tmp_path).read().columns
    assert not any("Jones" in str(value) for value in reader(tmp_path).read().to_numpy().ravel())


def test_semicolons_are_named(tmp_path: Path) -> None:
    header = HEADER.replace(",", ";")
    table(tmp_path, ROW.replace(",", ";"), header=header)
    with pytest.raises(UserError, match="is separated by semicolons, not by commas"):
        reader(tmp_path).read()


def test_renamed_column_names_the_nearest(tmp_path: Path) -> None:
    table(tmp_path, ROW, header=HEADER.replace("Finding Labels", "Finding_Label"))
    with pytest.raises(
        UserError, match=r"lacks the column `Finding Labels`\. Did you rename it to `Finding_Label`\?"
    ):
        reader(tmp_path).read()


def test_ids_of_any_script(tmp_path: Path) -> None:
    table(tmp_path, ROW.replace("00000001_000.png", "paciënt_Ω_001.png"))
    assert studies_of(tmp_path)["image_id"].tolist() == ["paciënt_Ω_001.png"]
