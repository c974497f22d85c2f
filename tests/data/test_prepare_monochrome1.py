"""A table that says MONOCHROME1 of PNG and JPEG images, and what is told of images that are used all the same."""

import gzip
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dicom_files import dicom
from PIL import Image

from ral.config.data import DataConfig, PreprocessConfig, PreprocessParams, SplitConfig, ValidateParams
from ral.config.environment import Environment
from ral.data.dataset import open_dataset
from ral.data.images.decode import NOTES, decode
from ral.data.prepare import COLUMNS
from ral.data.sources.base import open_source
from ral.data.validation.expectations import raw_expectations
from ral.errors import UserError
from ral.files import read_json

TABLE = {
    "image_id": "image_id",
    "patient_id": "patient_id",
    "path": "file",
    "view": "view",
    "photometric": "kind",
    "findings": {"Mass": "mass"},
}
DARK = ("i003", "i010", "i025")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps write runs/ into the folder they work in."""
    monkeypatch.chdir(tmp_path)


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (32, 24), np.uint8)


def write(kinds: dict[str, str] | None = None, endings: dict[str, str] | None = None) -> pd.DataFrame:
    """A data folder of 40 images of 20 patients; of the first no frontal view is kept."""
    Path("images").mkdir()
    rows = []
    for number in range(40):
        image_id = f"i{number:03}"
        ending = (endings or {}).get(image_id, "png")
        content = io.BytesIO()
        if ending == "dcm":
            content.write(dicom(pixels(number), 8, PhotometricInterpretation="MONOCHROME1"))
        else:
            Image.fromarray(pixels(number)).save(content, "PNG")
        Path("images", f"{image_id}.{ending}").write_bytes(content.getvalue())
        view = "LATERAL" if number == 0 else "PA"
        kind = (kinds or {}).get(image_id, "MONOCHROME2" if number % 2 else "")
        rows.append((image_id, f"p{number // 2:02}", f"{image_id}.{ending}", view, number % 3 % 2, kind))
    table = pd.DataFrame(rows, columns=["image_id", "patient_id", "file", "view", "mass", "kind"])
    table.to_csv("images/table.csv", index=False)
    return table


def data(**changes: object) -> DataConfig:
    settings = {
        "source": "table",
        "root": "images",
        "missing_images": "fail",
        "views": ["PA"],
        "table": TABLE,
    }
    return DataConfig(**(settings | changes))  # type: ignore[arg-type]


def run(out: str, section: DataConfig | None = None, **preprocess: object) -> Path:
    """Validate and preprocess, as the steps do; the state folder is one for all."""
    from tasks import preprocess as preprocess_step
    from tasks import validate as validate_step

    section = section or data()
    environment = Environment(state_dir=Path("state"))
    shutil.rmtree("validated", ignore_errors=True)
    validate_step.run(ValidateParams(data=section), environment, Path("validated"), Path("baseline"))
    params = PreprocessParams(
        data=section,
        split=SplitConfig(method="hash", val=0.2, test=0.2, seed=0),
        preprocess=PreprocessConfig(**({"size": 32, "shard_images": 9, "fit": "pad"} | preprocess)),  # type: ignore[arg-type]
    )
    preprocess_step.run(params, environment, Path("validated"), Path(out), Path("baseline"))
    return Path(out)


def images(out: Path) -> dict[str, np.ndarray]:
    dataset = open_dataset(out)
    ids = dataset.studies["image_id"].tolist()
    return dict(zip(ids, dataset.gather(np.arange(len(ids))), strict=True))


MONOCHROME1 = dict.fromkeys(DARK, "MONOCHROME1")


def test_somebody_has_to_choose() -> None:
    write(MONOCHROME1 | {"i000": "MONOCHROME1"})
    message = (
        r"3 of 39 images are MONOCHROME1 according to the table.*The first: Image images/i003\.png.*"
        r"preprocess\.monochrome1: invert, if.*keep, if.*fail, the default"
    )
    with pytest.raises(UserError, match=message):
        run("out")


def test_images_of_other_views_need_no_choice() -> None:
    write({"i000": "MONOCHROME1"})
    assert len(images(run("out"))) == 39


def test_inverted_and_kept_images_do_not_meet_in_the_store() -> None:
    write(MONOCHROME1)
    kept, inverted, again = (
        images(run(name, monochrome1=name.strip("2"))) for name in ("keep", "invert", "keep2")
    )
    for image_id, image in kept.items():
        plain = decode(Path(f"images/{image_id}.png").read_bytes(), 32, image_id, "pad")
        assert (image == plain).all()
        assert (again[image_id] == plain).all()
        wanted = plain.copy()
        if image_id in DARK:
            wanted[:, 4:28] = 255 - plain[:, 4:28]  # what is padded stays black
        assert (inverted[image_id] == wanted).all()


def test_pixel_statistics_are_those_of_the_inverted_images() -> None:
    write(MONOCHROME1)
    out = run("out", monochrome1="invert", fit="stretch")
    dataset = open_dataset(out)
    train = dataset.gather(np.flatnonzero((dataset.studies["split"] == "train").to_numpy()))
    assert dataset.info.pixel_mean == round(float(train.mean()), 6)


def test_dicom_says_it_itself() -> None:
    write({"i003": "MONOCHROME1", "i004": "MONOCHROME1"}, {"i003": "dcm", "i004": "dcm"})
    for choice in ("fail", "keep", "invert"):
        read = images(run(choice, monochrome1=choice, fit="stretch"))
        content = Path("images/i003.dcm").read_bytes()
        assert (read["i003"] == decode(content, 32, "i003")).all()


def test_column_goes_no_further() -> None:
    write(MONOCHROME1)
    out = run("out", monochrome1="invert")
    assert list(pd.read_parquet(out / "studies.parquet").columns) == [*COLUMNS, "Mass"]


@pytest.mark.parametrize("word", ["monochrome1", "RGB", "1"])
def test_other_words_are_an_error(word: str) -> None:
    write({"i007": word})
    with pytest.raises(
        UserError, match=rf"(?s)photometric interpretation is known.*row 9, i007: '?{word}'?\n"
    ):
        run("out")


def test_padchest_says_it_in_a_column_of_its_own(tmp_path: Path) -> None:
    header = (
        "ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,Projection,"
        "PhotometricInterpretation_DICOM,Labels"
    )
    lines = [
        header,
        *(f"a{n}.png,0,20140101,s{n},p{n},1950,M,PA,MONOCHROME{n},\"['normal']\"" for n in (1, 2)),
    ]
    path = tmp_path / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    source = open_source(
        DataConfig(source="padchest", root=str(tmp_path), missing_images="drop", views=["PA"])
    )
    assert source.to_studies(source.read())["monochrome1"].tolist() == [True, False]
    (check,) = [c for c in raw_expectations(source.layout, "drop") if "photometric" in c.meta["check"]]
    assert check.severity == "warning"  # its vocabulary is not ours to know
    without = [line.replace(",PhotometricInterpretation_DICOM", "") for line in lines]
    without = [line.replace(f",MONOCHROME{n}", "") for n, line in enumerate(without)]
    path.write_bytes(gzip.compress("\n".join(without).encode()))
    shortened = open_source(
        DataConfig(source="padchest", root=str(tmp_path), missing_images="drop", views=["PA"])
    )
    assert "monochrome1" not in shortened.to_studies(shortened.read())


def test_markers_are_told_once_with_count_and_examples(caplog: pytest.LogCaptureFixture) -> None:
    table = write()
    marked = table["image_id"].iloc[[1, 5, 9, 12, 30]].tolist()
    for image_id in marked:
        values = pixels(int(image_id[1:])).astype(np.uint16) * 16
        values[0, :3] = 65535
        stream = io.BytesIO()
        Image.fromarray(values).save(stream, "PNG")
        Path(f"images/{image_id}.png").write_bytes(stream.getvalue())
    for out in ("first", "again"):  # the second time they come from the store
        told = read_json(run(out) / "dataset.json")["notes"]
        assert told["saturated"] | {"text": ""} == {"images": 5, "examples": marked[:3], "text": ""}
        lines = [line for line in caplog.messages if "16-bit range" in line]
        caplog.clear()
        assert lines == [f"5 images (i001, i005, i009, …): {NOTES['saturated']}"]
        assert "preprocess.range" in lines[0]
    assert read_json(run("percentile", range="percentile") / "dataset.json")["notes"] == {}
    clipped = images(Path("percentile"))["i001"]
    assert clipped[:, 4:28].std() > 3 * images(Path("first"))["i001"][:, 4:28].std()


def test_pseudonyms_are_told_not_ids(caplog: pytest.LogCaptureFixture) -> None:
    write()
    Path("salt").write_text("0123456789abcdef" * 4)
    values = pixels(1).astype(np.uint16) * 16
    values[0, :3] = 65535
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    Path("images/i001.png").write_bytes(stream.getvalue())
    out = run("out", data(pseudonymise="salt"))
    (example,) = json.loads((out / "dataset.json").read_text())["notes"]["saturated"]["examples"]
    assert example in pd.read_parquet(out / "studies.parquet")["image_id"].tolist()
    assert f"1 image ({example})" in caplog.text
