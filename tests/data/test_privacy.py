"""No name, date or free text reaches prepared data; with a salt, no id does either."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import shipped

from ral.config.dask import DaskTarget
from ral.config.data import DataConfig, PreprocessConfig, PreprocessParams, SplitConfig, ValidateParams
from ral.config.environment import Environment
from ral.data.dataset import open_dataset
from ral.data.prepare import prepare
from ral.data.privacy import MIN_SALT_BYTES, pseudonyms, read_salt
from ral.errors import UserError

# What only a person may know, planted in the columns of a hospital's table (tests/shipped.py) or PadChest's report.
SECRETS = ("Müller", "Erika", "1961-02-03", "GARCIA", "dolor toracico", "20140915")


def chain(section: dict, folder: Path, method: str = "stratified", **changes: object) -> Path:
    """Validate and prepare; returns the prepared data."""
    from tasks.validate import run

    data = DataConfig(**(section | changes))
    run(
        ValidateParams(data=data),
        Environment(state_dir=folder / "state"),
        folder / "validated",
        folder / "baseline",
    )
    out = folder / "prepared"
    out.mkdir()
    params = PreprocessParams(
        data=data,
        split=SplitConfig(method=method, val=0.2, test=0.2, seed=0),
        preprocess=PreprocessConfig(size=32, shard_images=100),
    )
    images = pd.read_parquet(folder / "validated/images.parquet")
    prepare(params, images, out, DaskTarget(workers=1), lambda _: None, baseline=folder / "baseline")
    return out


def texts(folder: Path) -> str:
    """All that can be read in a folder: bytes as they are, and the cells of tables, which may be compressed."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found.append(path.read_bytes().decode("utf-8", errors="ignore"))
            if path.suffix == ".parquet":
                found.append(pd.read_parquet(path).to_csv())
    return "\n".join(found)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["table", "padchest"])
def test_names_dates_and_reports_stay_outside(name: str, tmp_path: Path) -> None:
    section = shipped.write(name, tmp_path / "images")
    raw = "\n".join(path.name for path in (tmp_path / "images").iterdir())
    chain(section, tmp_path)
    written = texts(tmp_path / "validated") + texts(tmp_path / "prepared")
    for secret in SECRETS:
        assert secret not in written
    assert raw
    assert "patient_id" in written


def test_with_a_salt_no_id_is_left(tmp_path: Path) -> None:
    section = shipped.write("table", tmp_path / "images")
    (tmp_path / "salt").write_bytes(bytes(range(32)))
    plain = chain(section, tmp_path / "plain")
    folder = chain(section, tmp_path / "hidden", pseudonymise=str(tmp_path / "salt"))
    studies, hidden = (pd.read_parquet(each / "studies.parquet") for each in (plain, folder))
    written, validation = texts(folder), (tmp_path / "hidden/validated/validation.json").read_text()
    assert "Aufnahme-17" in texts(plain)
    assert "röntgen/" in texts(plain)
    ids = ["Aufnahme-", "röntgen", *studies["patient_id"].unique()[:50], *studies["image_id"][:50]]
    assert [text for text in ids if text in written] == []
    # In validation.json a short number may stand for something else.
    assert [text for text in ids if len(text) >= 4 and text in validation] == []
    # The same people under other names: same groups, same split, same labels, in the same order.
    assert (pd.factorize(studies["patient_id"])[0] == pd.factorize(hidden["patient_id"])[0]).all()
    pd.testing.assert_frame_equal(studies.loc[:, "split":], hidden.loc[:, "split":])
    assert hidden["image_id"].is_unique
    assert (hidden[["path", "member"]] == "").all(axis=None)
    assert len(open_dataset(folder).studies) == 240


def test_accepted_split_of_pseudonyms_keeps_old_patients(tmp_path: Path) -> None:
    section = shipped.write("table", tmp_path / "images")
    (tmp_path / "salt").write_bytes(b"x" * 32)
    first = chain(section, tmp_path / "a", pseudonymise=str(tmp_path / "salt"))
    (tmp_path / "b/baseline").mkdir(parents=True)
    shutil.copy(first / "split.parquet", tmp_path / "b/baseline")
    again = chain(section, tmp_path / "b", pseudonymise=str(tmp_path / "salt"))
    assert (again / "split.parquet").read_bytes() == (first / "split.parquet").read_bytes()
    (tmp_path / "c").mkdir()
    shutil.copytree(tmp_path / "b/baseline", tmp_path / "c/baseline")
    with pytest.raises(UserError, match=r"would change their split.*baseline/split\.parquet"):
        chain(section, tmp_path / "c", method="hash", pseudonymise=str(tmp_path / "salt"))


def test_warnings_of_pseudonymised_data_show_no_cells(tmp_path: Path) -> None:
    section = shipped.write("table", tmp_path / "images")
    path = tmp_path / "images/befunde.csv"
    text = path.read_text(encoding="utf-8-sig").split("\n")
    cells = text[5].split(";")
    text[5] = ";".join([*cells[:5], "98765414", *cells[6:]])
    path.write_text("\n".join(text), encoding="utf-8")
    (tmp_path / "salt").write_bytes(b"x" * 32)
    chain(section, tmp_path, pseudonymise=str(tmp_path / "salt"))
    validation = (tmp_path / "validated/validation.json").read_text()
    assert "age is possible" in validation
    assert '"row": 6' in validation
    assert cells[0] not in validation
    assert "98765414" not in validation


def test_pseudonyms() -> None:
    ids = pd.Series(["a", "b", "a", "phantom1"], index=[5, 6, 7, 8])
    made = pseudonyms(ids, b"1" * 16)
    assert made.index.tolist() == [5, 6, 7, 8]
    assert made[5] == made[7] != made[6]
    assert len(made[5]) == 32
    assert made[8].startswith("phantom")  # a phantom never loses its mark
    assert (pseudonyms(ids, b"2" * 16) != made).all()


def test_salt_must_be_there_and_long(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist\. Create one"):
        read_salt(tmp_path / "salt")
    (tmp_path / "salt").write_bytes(b"x" * (MIN_SALT_BYTES - 1))
    with pytest.raises(UserError, match="needs at least 16"):
        read_salt(tmp_path / "salt")
