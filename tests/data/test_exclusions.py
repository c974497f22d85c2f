"""Excluded patients are in no output, log or message, and nobody else changes the split."""

import logging
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pandas as pd
import pytest
from conftest import ROOT
from excluded import LEAVING, SHARED, chain, data, remove, texts, write_images

from ral.config.base import load
from ral.config.data import DataConfig
from ral.config.environment import Environment
from ral.config.train import ManifestParams
from ral.data.exclusions import Exclusions, write_hashes
from ral.data.privacy import NO_PSEUDONYMS, Pseudonymizer, pseudonyms, read_salt
from ral.errors import UserError
from ral.files import read_json


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "delivered")
    (tmp_path / "leaving.txt").write_text("\n".join([*LEAVING, "Nobody0001", "Nobody0002", ""]))
    (tmp_path / "salt").write_bytes(bytes(range(32)))
    return tmp_path / "delivered"


def split(prepared: Path) -> dict[str, str]:
    table = pd.read_parquet(prepared / "split.parquet")
    return dict(zip(table["patient_id"], table["split"], strict=True))


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_they_are_in_no_file_and_no_log(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = texts(chain(data(root), tmp_path / "before"))
    assert all(name in before for name in LEAVING)
    shutil.rmtree(tmp_path / "runs")
    with caplog.at_level(logging.INFO):
        caplog.clear()
        chain(data(root, exclude_patients="leaving.txt"), tmp_path / "after")
    for folder in ("after/validated", "after/prepared", "after/state", "runs"):
        written = texts(tmp_path / folder)
        assert "Person0002" in written or folder in ("after/state", "runs")
        assert [name for name in LEAVING if name in written] == [], folder
    assert [name for name in (*LEAVING, "Nobody0001") if name in caplog.text] == []
    assert "6 of 8 patients are in the table; 10 rows excluded. 2 are not in the table" in caplog.text


@pytest.mark.parametrize("same_image", ["warn", "join"])
@pytest.mark.parametrize("method", ["official", "hash", "stratified"])
def test_nobody_else_changes_the_split(method: str, same_image: str, root: Path, tmp_path: Path) -> None:
    before = split(chain(data(root), tmp_path / "before", method, same_image))
    config = data(root, exclude_patients="leaving.txt")
    after = split(chain(config, tmp_path / "after", method, same_image))
    assert set(before) - set(after) == set(LEAVING)
    assert after == {person: part for person, part in before.items() if person not in LEAVING}


def test_the_splits_above_would_move_somebody(root: Path, tmp_path: Path) -> None:
    before, joined = (
        split(chain(data(root), tmp_path / name, method, same))
        for name, method, same in (("a", "stratified", "warn"), ("b", "hash", "join"))
    )
    remove(root)
    without, alone = (
        split(chain(data(root), tmp_path / name, method, same))
        for name, method, same in (("c", "stratified", "warn"), ("d", "hash", "join"))
    )
    assert without != {person: before[person] for person in without}
    assert any(alone[other] != joined[other] for other in SHARED.values())


@pytest.mark.parametrize("method", ["hash", "stratified"])
def test_an_accepted_split_stays_without_them(method: str, root: Path, tmp_path: Path) -> None:
    before = chain(data(root), tmp_path / "before", "stratified", "join")
    (tmp_path / "after/baseline").mkdir(parents=True)
    accepted = pd.read_parquet(before / "split.parquet")
    accepted[~accepted["patient_id"].isin(LEAVING)].to_parquet(tmp_path / "after/baseline/split.parquet")
    remove(root)  # and the rows are gone from the table, too
    after = split(chain(data(root), tmp_path / "after", "stratified", "join"))
    assert after == {person: part for person, part in split(before).items() if person not in LEAVING}


def test_the_outputs_are_those_of_a_table_without_them(root: Path, tmp_path: Path) -> None:
    after = chain(data(root, exclude_patients="leaving.txt"), tmp_path / "after")
    remove(root)
    assert files(after) == files(chain(data(root), tmp_path / "without"))


def test_hashes_are_as_good_as_ids(root: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "ral.data.hash_patients",
        "leaving.txt",
        "--salt",
        "salt",
        "--out",
        "hashes.txt",
    ]
    assert (
        subprocess.run(command, check=True, capture_output=True, text=True).stdout == "8 hashes: hashes.txt\n"
    )
    written = (tmp_path / "hashes.txt").read_text()
    made = pseudonyms(pd.Series(["Person0003"]), read_salt(tmp_path / "salt")).iloc[0]
    assert made in written.splitlines()
    assert "Person" not in written
    plain = chain(data(root, exclude_patients="leaving.txt"), tmp_path / "plain")
    config = data(root, exclude_patients="hashes.txt", exclude_salt="salt")
    assert files(chain(config, tmp_path / "hashed")) == files(plain)
    # The hash is the pseudonym, so one salt serves both.
    hidden = chain(config.model_copy(update={"pseudonymise": "salt"}), tmp_path / "hidden")
    assert [line for line in written.split() if line in texts(hidden)] == []
    assert len(split(hidden)) == len(split(plain))


def test_the_hash_is_the_documented_one(tmp_path: Path) -> None:
    from hashlib import blake2b

    (tmp_path / "salt").write_bytes(b"s" * 16)
    key = blake2b(b"s" * 16).digest()
    (tmp_path / "hashes.txt").write_text(blake2b("Jos\u00e9".encode(), key=key, digest_size=16).hexdigest())
    config = data(tmp_path, exclude_patients="hashes.txt", exclude_salt="salt")
    found = Exclusions.of(config, tmp_path).match(pd.Series(["Jos\u00e9", "Jose"]))
    assert found.tolist() == [True, False]


def test_pseudonyms_are_recognized(root: Path, tmp_path: Path) -> None:
    salt = Pseudonymizer(read_salt(tmp_path / "salt"))
    names = pd.Series(["Person0003", "Person0005"])
    plain = Exclusions.of(data(root, exclude_patients="leaving.txt"))
    assert plain.match_prepared(names, NO_PSEUDONYMS).tolist() == [True, False]
    assert plain.match_prepared(salt.ids(names), salt).tolist() == [True, False]
    (tmp_path / "hashes.txt").write_text(salt.ids(names).iloc[0])
    hashed = Exclusions.of(data(root, exclude_patients="hashes.txt", exclude_salt="salt"))
    assert hashed.match_prepared(salt.ids(names), salt).tolist() == [True, False]
    assert hashed.match_prepared(names, NO_PSEUDONYMS).tolist() == [True, False]


def test_errors_name_the_file_and_no_id(root: Path, tmp_path: Path) -> None:
    def refusal(**changes: str) -> str:
        with pytest.raises(UserError) as caught:
            Exclusions.of(data(root, **changes))
        return str(caught.value)

    told = refusal(exclude_patients="absent.txt")
    assert "absent.txt (data.exclude_patients) does not exist" in told
    assert "Put it there, or correct the path." in told
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match=r"empty\.txt lists no patient"):
        write_hashes(tmp_path / "empty.txt", tmp_path / "salt", tmp_path / "hashes.txt")
    told = refusal(exclude_patients="leaving.txt", exclude_salt="salt")
    assert "leaving.txt, line 1: not a keyed hash" in told
    assert "Person" not in told
    assert "(data.exclude_salt) does not" in refusal(exclude_patients="leaving.txt", exclude_salt="none")
    (tmp_path / "other").write_bytes(b"x" * 32)
    changes = {"exclude_patients": "leaving.txt", "exclude_salt": "salt", "pseudonymise": "other"}
    assert "are different salts" in refusal(**changes)
    (tmp_path / "leaving.txt").write_bytes(b"Jos\xe9\n")
    assert "is not UTF-8" in refusal(exclude_patients="leaving.txt")


@pytest.mark.parametrize("content", ["", "\n  \n"])
def test_a_file_without_patients_is_reported(
    content: str, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "leaving.txt").write_text(content)
    chain(data(root, exclude_patients="leaving.txt"), tmp_path / "after")
    assert "data.exclude_patients: the file lists no patient, so nobody is excluded" in caplog.text


def test_nobody_left_is_an_error(root: Path, tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text("\n".join(f"Person{number:04}" for number in range(80)))
    with pytest.raises(UserError, match="nobody is left"):
        chain(data(root, exclude_patients="all.txt"), tmp_path / "after")


def test_a_rejected_table_names_none_of_them(root: Path, tmp_path: Path) -> None:
    image = root / "bilder/Person0011/Person0011-1.png"
    # The most similar file is in a folder of one of them.
    image.rename(root / "bilder/Person0010/Person0011-1.jpg")
    with pytest.raises(UserError, match=r"Person0010/Person0011-1\.jpg"):
        chain(data(root), tmp_path / "before")
    shutil.rmtree(tmp_path / "runs")
    with pytest.raises(UserError, match="Person0011-1") as caught:
        chain(data(root, exclude_patients="leaving.txt"), tmp_path / "after")
    assert [name for name in LEAVING if name in str(caught.value) + texts(tmp_path / "runs")] == []


def test_an_archive_of_their_images_only_is_not_named(root: Path, tmp_path: Path) -> None:
    for archive, people in (("images_Person0003", "Person0003"), ("images_rest", "*")):
        with ZipFile(root / f"{archive}.zip", "w") as stream:
            for path in sorted((root / "bilder").glob(f"{people}/*.png")):
                if archive != "images_rest" or "Person0003" not in path.name:
                    stream.write(path, path.name)
    text = (root / "befund.csv").read_text()
    (root / "befund.csv").write_text(re.sub(r"^(Person\d+-\d)", r"\1.png", text, flags=re.MULTILINE))

    def archives(name: str, **changes: str) -> set[str]:
        config = data(root, **changes)
        table = config.table.model_copy(update={"path": None})
        chain(config.model_copy(update={"table": table}), tmp_path / name)
        files = read_json(tmp_path / name / "validated/validation.json")["files"]
        return {file for file in files if ".zip" in file}

    assert archives("before") == {"images_Person0003.zip", "images_rest.zip"}
    assert archives("after", exclude_patients="leaving.txt") == {"images_rest.zip"}
    assert "Person0003" not in texts(tmp_path / "after/validated") + texts(tmp_path / "after/prepared")


@pytest.mark.parametrize(
    "theirs", ["5,5,5,9", "1,1,99,9", "1,1,9,9"]
)  # empty, beyond the image, as it should be
def test_their_boxes_are_skipped_whatever_is_in_them(theirs: str, root: Path, tmp_path: Path) -> None:
    head = "image_id,class_name,x_min,y_min,x_max,y_max\n"
    (root / "boxes.csv").write_text(f"{head}Person0003-0,Mass,{theirs}\nPerson0002-0,Mass,1,1,9,9\n")
    config = data(root, exclude_patients="leaving.txt", boxes={"files": ["boxes.csv"]})
    prepared = chain(config, tmp_path / "after")
    assert pd.read_parquet(prepared / "boxes.parquet")["image_id"].tolist() == ["Person0002-0"]
    counts = read_json(prepared / "dataset.json")["boxes"]
    assert counts == {"boxes": 1, "images": 1, "no_image": 0, "cut_off": 0}


def test_only_their_boxes_are_an_error_without_an_id(root: Path, tmp_path: Path) -> None:
    (root / "boxes.csv").write_text(
        "image_id,class_name,x_min,y_min,x_max,y_max\nPerson0003-0,Mass,1,1,9,9\n"
    )
    config = data(root, exclude_patients="leaving.txt", boxes={"files": ["boxes.csv"]})
    with pytest.raises(UserError, match="no box is of an image and a finding that are used") as caught:
        chain(config, tmp_path / "after")
    assert "Person0003" not in str(caught.value)


def test_the_manifest_changes_with_the_file_and_has_no_names(root: Path, tmp_path: Path) -> None:
    from tasks.manifest import run

    def manifest(name: str, **changes: str) -> str:
        params = load(ROOT / "params.yaml", ManifestParams).model_copy(update={"data": data(root, **changes)})
        environment = Environment(state_dir=tmp_path / "state")
        others = tmp_path / "phantom", tmp_path / "location.json", tmp_path / "user_code.json"
        run(params, environment, others[0], tmp_path / name, *others[1:])
        return (tmp_path / name).read_text()

    plain = manifest("plain.json")
    assert "Person0003" in plain
    assert "exclude" not in plain
    first = manifest("first.json", exclude_patients="leaving.txt")
    assert "Person" not in first
    shutil.copy(tmp_path / "leaving.txt", tmp_path / "elsewhere.txt")
    assert manifest("second.json", exclude_patients="elsewhere.txt") == first
    (tmp_path / "leaving.txt").write_text("Person0003\n")
    other = manifest("third.json", exclude_patients="leaving.txt")
    assert other != first
    assert read_json(tmp_path / "third.json")["folders"] == read_json(tmp_path / "first.json")["folders"]
    # Another salt, or none, makes other patients of the same lines.
    (tmp_path / "leaving.txt").write_text("0" * 32)
    salted = [
        manifest("salted.json", exclude_patients="leaving.txt", exclude_salt=salt) for salt in ("salt", None)
    ]
    (tmp_path / "salt").write_bytes(b"another salt of 24 bytes")
    salted.append(manifest("salted.json", exclude_patients="leaving.txt", exclude_salt="salt"))
    assert len(set(salted)) == 3
    (tmp_path / "leaving.txt").write_text("Person0003\n")
    (root / "bilder/Person0001/Person0001-0.png").write_bytes(b"another")
    assert read_json(tmp_path / "third.json")["folders"] != (
        manifest("fourth.json", exclude_patients="leaving.txt")
        and read_json(tmp_path / "fourth.json")["folders"]
    )


def test_images_of_an_archive_without_a_row_are_counted_and_not_named(
    phantom_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The members of an archive are listed whether or not a row names them: theirs must not stay in the list."""
    monkeypatch.chdir(tmp_path)
    path = phantom_copy / "Data_Entry_2017.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))  # one image is left without a row
    table = pd.read_csv(path, index_col=False, dtype=str)
    leaving = table["Patient ID"].unique()[3::20]
    rows = table["Patient ID"].isin(leaving)
    (tmp_path / "leaving.txt").write_text("\n".join(leaving))
    config = DataConfig(
        source="nih", root=str(phantom_copy), missing_images="fail", views=["PA", "AP"], exclude_patients="leaving.txt"
    )  # fmt: skip
    prepared = chain(config, tmp_path / "after")
    written = texts(tmp_path / "after/validated") + texts(prepared)
    theirs = [*table.loc[rows, "Image Index"], lines[-1].split(",")[0]]
    assert [name for name in theirs if name in written] == []
    listed = pd.read_parquet(tmp_path / "after/validated/images.parquet")["image_id"]
    assert set(listed) == set(table.loc[~rows, "Image Index"])
    assert read_json(tmp_path / "after/validated/validation.json")["images_without_row"] == 1
