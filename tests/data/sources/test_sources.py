"""Every source as its owners ship it: the table that comes out, and the steps that work on it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shipped

from ral.config.dask import DaskTarget
from ral.config.data import DataConfig, PreprocessConfig, PreprocessParams, SplitConfig, ValidateParams
from ral.config.environment import Environment
from ral.data.dataset import open_dataset
from ral.data.prepare import prepare
from ral.data.sources.base import Source, open_source
from ral.data.splits.methods import SPLITS
from ral.errors import UserError
from ral.labels import LABEL_SETS, NIH_FINDINGS, NO_FINDING
from ral.phantom.signs import draw_image


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory):
    """The `data` section of a data set's folder, written once; do not change the folder, copy it."""
    made: dict[str, dict] = {}

    def section(name: str) -> dict:
        if name not in made:
            made[name] = shipped.write(name, tmp_path_factory.mktemp(name))
        return made[name]

    return section


def source_of(section: dict, **changes: object) -> Source:
    return open_source(DataConfig(**(section | changes)))


def studies_of(section: dict, **changes: object) -> pd.DataFrame:
    source = source_of(section, **changes)
    return source.to_studies(source.read()).set_index("image_id")


@pytest.mark.parametrize("name", shipped.SHIPPED)
def test_one_table_and_images_of_their_labels(folders, name: str, tmp_path: Path) -> None:
    """Through the steps validate and preprocess: every row has its own image, findings and split."""
    from tasks.validate import run

    section = folders(name)
    monkey = pytest.MonkeyPatch()
    monkey.chdir(tmp_path)
    data = DataConfig(**section)
    run(
        ValidateParams(data=data),
        Environment(state_dir=tmp_path / "state"),
        tmp_path / "validated",
        tmp_path / "baseline",
    )
    monkey.undo()
    validation = json.loads((tmp_path / "validated/validation.json").read_text())
    assert validation["passed"]
    images = pd.read_parquet(tmp_path / "validated/images.parquet")
    assert validation["rows"] == validation["images"] == len(images) == 240

    out = tmp_path / "out"
    out.mkdir()
    method = "official" if name in shipped.OFFICIAL else "stratified"
    params = PreprocessParams(
        data=data,
        split=SplitConfig(method=method, val=0.2, test=0.2, seed=0),
        preprocess=PreprocessConfig(size=48, shard_images=100),
    )
    prepare(params, images, out, DaskTarget(workers=2), lambda _: None, baseline=tmp_path / "baseline")
    dataset = open_dataset(out)
    source = open_source(data)
    assert dataset.findings == source.findings()
    assert set(dataset.studies["split"]) == set(SPLITS)
    assert set(dataset.studies["view"]) <= {"PA", "AP", "FRONTAL"}
    expected = source.to_studies(source.read()).set_index("image_id").loc[dataset.studies["image_id"]]
    for finding in dataset.findings:
        np.testing.assert_array_equal(dataset.studies[finding], expected[finding])


def test_pixels_are_those_of_the_row(folders, tmp_path: Path) -> None:
    """ChestMNIST's images come out of the npz in place; MIMIC's from their long paths."""
    for name, size in (("chestmnist", 64), ("mimic", 48)):
        section = folders(name)
        source = source_of(section)
        raw = source.read()
        images, _ = source.images(raw, lambda _: None)
        out = tmp_path / name
        out.mkdir()
        data = DataConfig(**section)
        params = PreprocessParams(
            data=data,
            split=SplitConfig(method="official", val=0.2, test=0.2, seed=0),
            preprocess=PreprocessConfig(size=size, shard_images=100),
        )
        prepare(params, images, out, DaskTarget(workers=2), lambda _: None, baseline=tmp_path / "none")
        dataset = open_dataset(out)
        people = shipped.people()
        if name == "mimic":
            drawn = {shipped.mimic_id(image)[0]: image for image in people}
        else:
            order = [f for f in people if not f.test and f.patient % 4]
            drawn = {f"train_{number:06d}": image for number, image in enumerate(order)}
        for row in (0, 7, 100):
            image_id = dataset.studies["image_id"].iloc[row]
            wanted = draw_image(drawn[image_id], size, shipped.CONFIG.seed).astype(int)
            difference = np.abs(dataset.gather(np.array([row]))[0].astype(int) - wanted)
            assert difference.mean() < (0.1 if name == "chestmnist" else 4)  # MIMIC's images are JPEG


def test_chexpert_reads_path_views_and_uncertainty(folders) -> None:
    ignored, zeros, ones = (
        studies_of(folders("chexpert"), uncertain=policy, unmentioned="unknown")
        for policy in ("ignore", "negative", "positive")
    )
    image = shipped.people()[0]  # every eleventh is a lateral, the first too
    study = f"patient{image.patient:05d}_study{image.follow_up + 1}"
    row = ignored.loc[f"{study}_view1_lateral"]
    assert (row.patient_id, row.study_id) == (f"patient{image.patient:05d}", study)
    assert row["view"] == "LATERAL"
    assert set(ignored["view"]) == {"PA", "AP", "LATERAL"}
    assert ignored["sex"].isna().sum() == 1
    raw = source_of(folders("chexpert")).read()
    uncertain, blank = (raw["Edema"] == "-1.0").to_numpy(), (raw["Edema"] == "").to_numpy()
    healthy = (raw["No Finding"] == "1.0").to_numpy()
    assert uncertain.any()
    assert (blank & ~healthy).any()
    assert (blank & healthy).any()
    assert ignored["Edema"][uncertain].isna().all()
    assert (zeros["Edema"][uncertain] == 0).all()
    assert (ones["Edema"][uncertain] == 1).all()
    kept = source_of(folders("chexpert"), uncertain="keep", unmentioned="unknown")
    # Only preprocess sees the mark.
    pd.testing.assert_frame_equal(kept.to_studies(kept.read()).set_index("image_id"), ignored)
    assert (kept.to_studies(kept.read(), mark_uncertain=True)["Edema"][uncertain] == -1).all()
    assert ignored["Edema"][blank & ~healthy].isna().all()  # not mentioned is not absent
    assert (ignored["Edema"][blank & healthy] == 0).all()
    assert ignored["Support Devices"][blank & healthy].isna().all()  # No Finding does not exclude a tube
    assert (studies_of(folders("chexpert"), unmentioned="negative")["Edema"][blank] == 0).all()


def test_chexpert_full_has_another_first_folder(folders, tmp_path: Path) -> None:
    section = folders("chexpert")
    root = Path(shutil.copytree(section["root"], tmp_path / "full"))
    for name in ("train.csv", "valid.csv"):
        text = (root / name).read_text()
        (root / name).write_text(text.replace("CheXpert-v1.0-small/", "CheXpert-v1.0/"))
    pd.testing.assert_frame_equal(studies_of(section, root=str(root)), studies_of(section))


def test_mimic_joins_metadata_split_and_labels(folders) -> None:
    studies = studies_of(folders("mimic"), uncertain="ignore", unmentioned="unknown")
    image = shipped.people()[20]
    dicom, subject, study = shipped.mimic_id(image)
    row = studies.loc[dicom]
    assert (row.patient_id, row.study_id, row["view"]) == (subject, study, image.view)
    assert set(studies["official"]) == {"train", "val", "test"}
    assert set(studies["view"]) == {"PA", "AP", "LATERAL", "OTHER"}
    without = shipped.mimic_id(shipped.people()[5])[0]
    assert studies.loc[without, list(LABEL_SETS["mimic"]["chexpert"])].isna().all()


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("cxr_lt_2023", 26),
        ("cxr_lt_2024_task1", 40),
        ("cxr_lt_2024_task2", 26),
        ("cxr_lt_2024_all", 45),
        ("cxr_lt_2026", 30),
    ],
)
def test_long_tailed_label_sets(folders, name: str, classes: int) -> None:
    studies = studies_of(folders(name))
    findings = source_of(folders(name)).findings()
    assert len(findings) == classes
    assert {"Effusion", "Pleural_Thickening", NO_FINDING} <= set(findings)  # torchxrayvision's names
    labels = studies[list(findings)]
    assert set(np.unique(labels)) == {0.0, 1.0}
    others = labels.drop(columns=NO_FINDING)
    assert ((labels[NO_FINDING] == 1) == (others.sum(axis=1) == 0)).all()


def test_cxr_lt_2026_takes_views_from_padchest_where_it_is_there(folders, tmp_path: Path) -> None:
    alone = studies_of(folders("cxr_lt_2026"))
    assert set(alone["view"]) == {"FRONTAL"}
    assert alone["sex"].isna().all()
    root = Path(shutil.copytree(folders("cxr_lt_2026")["root"], tmp_path / "both"))
    name = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz"
    shutil.copy(Path(folders("padchest")["root"]) / name, root)
    both = studies_of(folders("cxr_lt_2026"), root=str(root))
    assert set(both["view"]) == {"PA", "AP", "LATERAL"}
    assert set(both["sex"]) == {"M", "F"}
    pd.testing.assert_series_equal(alone["Cardiomegaly"], both["Cardiomegaly"])


def test_padchest_words_ages_and_excluded_images(folders) -> None:
    studies = studies_of(folders("padchest"), findings=None)
    people = shipped.people()
    assert studies["age_years"].tolist() == [image.age for image in people]
    assert set(studies["view"]) == {"PA", "AP", "LATERAL"}
    assert studies.iloc[[7, 8]][list(NIH_FINDINGS)].isna().all(axis=None)  # excluded, and not labelled
    for number, image in enumerate(people):
        if number in (7, 8):
            continue
        row = studies.iloc[number]
        for finding in ("Effusion", "Atelectasis", "Nodule", "Hernia", "Cardiomegaly"):
            assert row[finding] == (finding in image.findings), (number, finding)
        # An infiltration is also what consolidation shows.
        assert row["Infiltration"] == bool({"Infiltration", "Consolidation"} & set(image.findings))


@pytest.mark.parametrize("text", ["__import__('os').system('true')", "['a', 1]", "{'a': 1}", "['open", "nan"])
def test_padchest_labels_are_parsed_not_executed(text: str) -> None:
    from ral.data.sources import padchest

    with pytest.raises((ValueError, SyntaxError)):
        padchest.parse(text)
    assert padchest.parse("['COPD signs', ' pleural  effusion ']") == ["copd signs", "pleural effusion"]
    assert padchest.parse("['', 'mass', ' ']") == ["mass"]  # an empty word hides no finding
    assert padchest.parse("['']") == padchest.parse("[]") == padchest.parse("") == [""]
    assert len(padchest.vocabulary()) > 170


def test_vindr_merges_readers(folders) -> None:
    majority = studies_of(folders("vindr"))
    people = shipped.people()
    mass = majority["Nodule/Mass"].to_numpy()
    assert len(majority) == 240
    assert set(np.unique(mass)) == {0.0, 1.0}
    assert set(majority["view"]) == {"PA"}
    assert set(majority["official"]) == {"train", "test"}
    by_id = {f"{image.patient:016x}{image.follow_up:016x}": image for image in people}
    assert all(row.Edema == ("Edema" in by_id[image_id].findings) for image_id, row in majority.iterrows())


def test_vindr_any_reader_is_enough_and_majority_is_more_than_half() -> None:
    from ral.data.sources.vindr import merge_readers

    votes = pd.DataFrame(
        {
            "image_id": ["b", "b", "b", "a", "a"],
            "row": [2, 3, 4, 5, 6],
            "No finding": ["1", "1", "0", "0", "1"],
            "Edema": ["0", "0", "1", "1", "0"],
            "COPD": ["0", "0", "0", "1", "1"],
        }
    )
    columns = ["No finding", "Edema", "COPD"]
    majority = merge_readers(votes, columns, "majority")
    assert majority.to_dict("list") == {
        "image_id": ["b", "a"], "No finding": ["1", "0"], "Edema": ["0", "0"], "COPD": ["0", "1"], "row": [2, 5],
    }  # fmt: skip
    either = merge_readers(votes, columns, "any")
    assert either["Edema"].tolist() == ["1", "1"]
    assert either["No finding"].tolist() == ["0", "0"]
    votes.loc[1, "Edema"] = "maybe"
    assert merge_readers(votes, columns, "any")["Edema"].tolist() == ["maybe", "1"]


def test_chestmnist_stored_and_compressed_and_damaged(tmp_path: Path) -> None:
    for name, compressed in (("a", True), ("b", False)):
        (tmp_path / name).mkdir()
        shipped.chestmnist(tmp_path / name, "chestmnist_224.npz", compressed)
    base = {"source": "chestmnist", "missing_images": "fail", "views": ["PA", "AP"]}
    first, second = (studies_of(base | {"root": str(tmp_path / name)}) for name in "ab")
    pd.testing.assert_frame_equal(first, second)
    image = [f for f in shipped.people() if f.test][2]
    assert [name for name in NIH_FINDINGS if first.loc["test_000002", name]] == [
        n for n in NIH_FINDINGS if n in image.findings
    ]
    path = tmp_path / "a/chestmnist_224.npz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="truncated or damaged"):
        source_of(base | {"root": str(tmp_path / "a")}).read()
    objects = np.array([{"a": 1}], dtype=object)
    np.savez(path, train_labels=objects)
    with pytest.raises(UserError, match="Python objects"):
        source_of(base | {"root": str(tmp_path / "a")}).read()


def test_chestmnist_of_two_lengths(tmp_path: Path) -> None:
    shipped.chestmnist(tmp_path)
    path = tmp_path / "chestmnist_64.npz"
    arrays = dict(np.load(path))
    np.savez(path, **(arrays | {"val_labels": arrays["val_labels"][1:]}))
    section = {"source": "chestmnist", "missing_images": "fail", "views": ["PA", "AP"], "root": str(tmp_path)}
    source = source_of(section)
    raw = source.read()
    with pytest.raises(UserError, match=r"val has .* images but another number of labels"):
        source.images(raw, lambda _: None)


def test_cxr_lt_image_that_mimic_does_not_have(folders, tmp_path: Path) -> None:
    root = Path(shutil.copytree(folders("cxr_lt_2023")["root"], tmp_path / "images"))
    path = root / "cxr-lt-2023/train.csv"
    lines = path.read_text().split("\n")
    path.write_text("\n".join([lines[0], "x" + lines[1], *lines[2:]]))
    with pytest.raises(
        UserError, match=r"1 images of the CXR-LT files are not in the metadata table\. The first: x"
    ):
        source_of(folders("cxr_lt_2023"), root=str(root)).read()


def test_own_table_as_parquet_reads_the_same(folders, tmp_path: Path) -> None:
    section = folders("table")
    root = Path(shutil.copytree(section["root"], tmp_path / "own"))
    csv = pd.read_csv(root / "befunde.csv", sep=";")
    csv["Alter"] = csv["Alter"].astype("float64")  # 58.0 is still a whole number
    csv.to_parquet(root / "befunde.parquet", row_group_size=50)
    table = section["table"] | {"file": "befunde.parquet"}
    parquet = source_of(section, root=str(root), table=table)
    pd.testing.assert_frame_equal(
        parquet.to_studies(parquet.read()),
        source_of(section).to_studies(source_of(section).read()),
        check_dtype=False,
    )


def test_own_table_with_a_column_per_finding(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(
        "image_id,patient_id,Erguss,Mass,age\nä.png,ß1,1,0,61\nb.png,ß1,-1,,62\nc.png,p3,0,1,\n",
        encoding="utf-8",
    )
    section = {
        "source": "table", "root": str(tmp_path), "missing_images": "drop", "views": ["PA", "AP"],
        "table": {"findings": {"Effusion": "Erguss", "Mass": "Mass"}, "age_years": "age"},
    }  # fmt: skip
    studies = studies_of(section)
    assert studies["Effusion"].tolist()[0] == 1
    assert np.isnan(studies["Effusion"].iloc[1])
    assert studies["Mass"].isna().tolist() == [False, True, False]
    assert studies["age_years"].isna().tolist() == [False, False, True]
    assert studies.index.tolist() == ["ä.png", "b.png", "c.png"]
    assert studies["view"].tolist() == ["FRONTAL"] * 3


@pytest.mark.parametrize("name", sorted(set(shipped.SHIPPED) - shipped.OFFICIAL))
def test_no_official_split_says_what_to_set(folders, name: str) -> None:
    source = source_of(folders(name))
    with pytest.raises(UserError, match=r"no official split\. Set split\.method to hash or stratified"):
        source.official(source.to_studies(source.read()))


def test_every_source_of_the_registry_has_a_file_and_a_folder_to_show() -> None:
    from typing import get_args

    from ral.labels import SourceName

    names = set(get_args(SourceName))
    files = {path.stem for path in (Path(__file__).parents[3] / "ral/data/sources").glob("*.py")}
    assert names == files - {"__init__", "base", "parquet", "text"}
    shown = {name.split("_lt_")[0] for name in shipped.SHIPPED}
    assert names - {"nih"} <= shown | {"mimic"}  # NIH's is the embedded data set
