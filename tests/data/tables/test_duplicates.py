"""One image under two patients, one person under two ids: found by bytes and pixels, told, refused or joined."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ral.config.data import (
    DataConfig,
    PreprocessConfig,
    PreprocessParams,
    SplitConfig,
    ValidateParams,
)
from ral.config.environment import Environment
from ral.data.images.shards import same_pixels, write_shard
from ral.data.tables.duplicates import SameImages, partners, shared_images
from ral.errors import UserError
from ral.files import read_json


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps write runs/ into the folder they work in."""
    monkeypatch.chdir(tmp_path)


def pixels(number: int) -> np.ndarray:
    """An image of its own for each number."""
    return np.random.default_rng(number).integers(0, 256, (32, 32), np.uint8)


def table(people: int = 30) -> pd.DataFrame:
    """Two images a person; every second person has an effusion, every third image a mass."""
    return pd.DataFrame(
        [
            (
                f"i{2 * n + turn:03}",
                f"p{n:03}",
                f"images/i{2 * n + turn:03}.png",
                n % 2,
                int((n + turn) % 3 == 0),
            )
            for n in range(people)
            for turn in (0, 1)
        ],
        columns=["image_id", "patient_id", "file", "effusion", "mass"],
    )


def write(rows: pd.DataFrame, same: dict[str, str] | None = None, recoded: bool = False) -> None:
    """A data folder; `same` gives an image the pixels of another, in the same bytes or, recoded, in others."""
    shutil.rmtree("images", ignore_errors=True)
    Path("images/images").mkdir(parents=True)
    rows.to_csv("images/table.csv", index=False)
    for image_id, file in zip(rows["image_id"], rows["file"], strict=True):
        origin = (same or {}).get(image_id, image_id)
        image = Image.fromarray(pixels(int(origin[1:])))
        content = io.BytesIO()
        image.save(content, "PNG", compress_level=1 if recoded and origin != image_id else 6)
        Path("images", file).write_bytes(content.getvalue())


DATA = DataConfig(
    source="table", root="images", missing_images="fail", views=["PA", "AP"],
    table={"path": "file", "findings": {"Effusion": "effusion", "Mass": "mass"}},
)  # fmt: skip


def validate(data: DataConfig = DATA) -> dict:
    from tasks.validate import run

    shutil.rmtree("runs", ignore_errors=True)
    try:
        run(ValidateParams(data=data), Environment(state_dir=Path("state")), Path("v"), Path("baseline"))
        message = ""
    except UserError as error:
        message = str(error)
    (validation,) = Path("runs").glob("*/validation.json")
    content = read_json(validation)
    failed = {check["check"]: check for check in content["checks"] if not check["passed"]}
    return {"failed": failed, "message": message}


def preprocess(
    policy: str, method: str = "hash", data: DataConfig = DATA, monochrome1: str = "fail"
) -> tuple[pd.Series, dict]:
    """The split by patient, and dataset.json."""
    from tasks.preprocess import run

    params = PreprocessParams(
        data=data,
        split=SplitConfig(method=method, val=0.2, test=0.3, seed=0, same_image=policy),
        preprocess=PreprocessConfig(size=16, shard_images=20, monochrome1=monochrome1),
    )
    shutil.rmtree("out", ignore_errors=True)
    run(params, Environment(state_dir=Path("state")), Path("v"), Path("out"), Path("baseline"))
    return pd.read_parquet("out/split.parquet").set_index("patient_id")["split"], read_json(
        Path("out/dataset.json")
    )


# Images of p000 to p009 that are those of p015 to p024.
SAME = {f"i{2 * n + 30:03}": f"i{2 * n:03}" for n in range(10)}


def test_equal_bytes_are_a_warning_with_both_images(tmp_path: Path) -> None:
    write(table())
    assert validate()["failed"] == {}
    write(table(), SAME)
    check = validate()["failed"]["an image belongs to one patient"]
    assert check["severity"] == "warning"
    assert check["unexpected"] == 20
    assert check["samples"][0]["image_id"] == "i000"
    assert check["samples"][0]["value"] == "the same bytes as i030 of patient p015"
    assert "split.same_image" in check["remedy"]


def test_equal_images_of_one_patient_are_no_matter() -> None:
    write(table(), {"i001": "i000"})
    assert validate()["failed"] == {}
    _, facts = preprocess("fail")
    assert facts["same_image"] == {
        "images": 0, "patients": 0, "apart": 0, "examples": [], "joined": False,
    }  # fmt: skip


@pytest.mark.parametrize("recoded", [False, True], ids=["bytes", "pixels"])
@pytest.mark.parametrize("method", ["hash", "stratified"])
def test_patients_of_one_image_are_counted_or_joined(
    method: str, recoded: bool, caplog: pytest.LogCaptureFixture
) -> None:
    write(table(), SAME, recoded)
    assert set(validate()["failed"]) == (set() if recoded else {"an image belongs to one patient"})
    apart, facts = preprocess("warn", method)
    assert facts["same_image"]["images"] == 10
    assert facts["same_image"]["patients"] == 20
    assert facts["same_image"]["examples"][0] == ["i000 (patient p000)", "i030 (patient p015)"]
    assert "10 images are listed under more than one patient" in caplog.text
    pairs = [(f"p{n:03}", f"p{n + 15:03}") for n in range(10)]
    assert facts["same_image"]["apart"] == sum(apart[one] != apart[two] for one, two in pairs) > 0
    joined, facts = preprocess("join", method)
    assert facts["same_image"]["joined"]
    assert facts["same_image"]["apart"] == 0
    assert all(joined[one] == joined[two] for one, two in pairs)
    if method == "hash":  # nobody else moves
        others = [patient for patient in apart.index if not any(patient in pair for pair in pairs)]
        assert (joined[others] == apart[others]).all()
        assert all(joined[one] == apart[one] for one, _ in pairs)


def test_fail_names_the_images_and_leaves_nothing() -> None:
    write(table(), SAME)
    validate()
    with pytest.raises(
        UserError,
        match=r"10 images are listed under more than one patient \(20 patients\)(?s:.*)i000 \(patient p000\)",
    ):
        preprocess("fail")
    assert not Path("out").exists()


def test_join_keeps_who_was_accepted_and_refuses_who_stood_in_two_splits() -> None:
    write(table(), SAME)
    validate()
    apart, _ = preprocess("warn")
    one, two = next(
        (f"p{n:03}", f"p{n + 15:03}") for n in range(10) if apart[f"p{n:03}"] != apart[f"p{n + 15:03}"]
    )
    Path("baseline").mkdir()
    shutil.copy("out/split.parquet", "baseline/split.parquet")
    with pytest.raises(UserError, match=r"share an image and are in different splits of baseline"):
        preprocess("join")
    accepted = pd.read_parquet("out/split.parquet") if Path("out/split.parquet").exists() else None
    assert accepted is None
    pd.DataFrame({"patient_id": [two], "split": [apart[two]]}).to_parquet("baseline/split.parquet")
    joined, _ = preprocess("join")
    assert joined[one] == joined[two] == apart[two]


@pytest.mark.parametrize("method", ["hash", "stratified"])
def test_who_stood_for_a_group_may_be_gone(method: str) -> None:
    write(table(), SAME)
    validate()
    joined, _ = preprocess("join", method)
    Path("baseline").mkdir()
    shutil.copy("out/split.parquet", "baseline/split.parquet")
    rest = table()
    write(rest[rest["patient_id"] != "p000"], SAME)
    validate()
    again, _ = preprocess("join", method)
    assert again["p015"] == joined["p015"]
    assert (again == joined[again.index]).all()


def test_equal_files_of_which_one_is_inverted_are_one_image() -> None:
    """The table says MONOCHROME1 of one patient's: the pixels differ, the person does not."""
    rows = table()
    rows["photometric"] = np.where(rows["patient_id"] >= "p015", "MONOCHROME1", "MONOCHROME2")
    write(rows, SAME)
    data = DATA.model_copy(update={"table": DATA.table.model_copy(update={"photometric": "photometric"})})
    validate(data)
    joined, facts = preprocess("join", data=data, monochrome1="invert")
    assert facts["same_image"]["images"] == 10
    assert facts["inverted"] == 30
    assert all(joined[f"p{n:03}"] == joined[f"p{n + 15:03}"] for n in range(10))
    for path in Path("images/images").iterdir():
        path.write_bytes(b"no image")  # never decoded: what stops the run stops it before
    with pytest.raises(UserError, match="are listed under more than one patient"):
        preprocess("fail", data=data, monochrome1="invert")


def test_join_against_the_official_lists_is_an_error() -> None:
    rows = table()
    rows["split"] = np.where(rows["patient_id"] >= "p015", "test", "train")
    write(rows, SAME)
    data = DATA.model_copy(update={"table": DATA.table.model_copy(update={"split": "split"})})
    validate(data)
    preprocess("warn", "official", data)
    with pytest.raises(UserError, match="Patients p000, p015 share an image and are on different official"):
        preprocess("join", "official", data)


def test_pseudonyms_are_told_instead_of_ids() -> None:
    write(table(), SAME)
    Path("salt").write_bytes(b"0123456789abcdef")
    data = DATA.model_copy(update={"pseudonymise": "salt"})
    validate(data)
    _, facts = preprocess("join", data=data)
    assert facts["same_image"]["images"] == 10
    assert "p000" not in json.dumps(facts)


@pytest.mark.parametrize(("source", "severity"), [("table", "warning"), ("nih", "error")])
def test_ids_that_look_alike(source: str, severity: str, phantom_copy: Path) -> None:
    data = DATA
    if source == "table":
        rows = table()
        rows["patient_id"] = [f"{n // 2:03}" if n % 2 else str(n // 2) for n in range(len(rows))]
        write(rows)
    else:
        path = phantom_copy / "Data_Entry_2017.csv"
        lines = path.read_text().splitlines()
        cells = lines[5].split(",")
        cells[3] = f"{cells[3]}.0"
        path.write_text("\n".join([*lines[:5], ",".join(cells), *lines[6:]]) + "\n")
        data = DataConfig(source="nih", root=str(phantom_copy), missing_images="fail", views=["PA", "AP"])
    check = validate(data)["failed"]["patient ids do not look alike"]
    assert check["severity"] == severity
    if source == "table":
        assert check["unexpected"] == 60
        assert check["samples"][0] == {"row": 2, "image_id": "i000", "value": "'0' and '000'"}


def test_a_file_that_two_rows_name_is_an_error() -> None:
    rows = table()
    rows.loc[3, "file"] = rows.loc[2, "file"]
    write(rows)
    found = validate()
    check = found["failed"]["an image file has one row"]
    assert check["unexpected"] == 2
    assert check["samples"][0] == {"row": 4, "image_id": "i002", "value": "images/i002.png"}
    assert "Keep one row per image file" in found["message"]


def test_a_remedy_that_is_set_already_is_not_advised() -> None:
    write(table())
    Path("images/images/i005.png").unlink()
    assert "set data.missing_images to drop" in validate()["message"]
    dropped = validate(DATA.model_copy(update={"missing_images": "drop"}))
    remedy = dropped["failed"]["image is present"]["remedy"]
    assert "missing_images" not in remedy


def test_many_patients_in_a_chain_are_one_group() -> None:
    rows = pd.DataFrame(
        {
            "image_id": list("abcdef"),
            "patient_id": ["p3", "p2", "p2", "p1", "p9", "p8"],
            "content": list("xxyyzz"),
        }
    )
    same = SameImages(shared_images(rows))
    assert same.groups().to_dict() == {"p1": "p1", "p2": "p1", "p3": "p1", "p8": "p8", "p9": "p8"}
    assert same.groups(pd.Index(["p3", "p9"])).to_dict() == {
        "p1": "p3", "p2": "p3", "p3": "p3", "p8": "p9", "p9": "p9",
    }  # fmt: skip
    assert partners(same.rows) == [1, 0, 3, 2, 5, 4]


def test_equal_sums_are_not_equal_pixels(tmp_path: Path) -> None:
    images = np.stack([pixels(n) for n in range(6)])
    images[3] = images[1]
    images[4] = images[2][::-1]  # the same sums, other pixels
    paths = [tmp_path / "a.arrow", tmp_path / "b.arrow"]
    write_shard(paths[0], ["0", "1"], images[:2])
    write_shard(paths[1], ["2", "3", "4", "5"], images[2:])
    wide = images.astype(np.int64)
    sums = np.stack([wide.sum((1, 2)), (wide**2).sum((1, 2))], 1)
    assert same_pixels(paths, 32, sums).index.tolist() == [1, 3]
