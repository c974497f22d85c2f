"""`ral evaluate`: the metrics of the pipeline on its own test images, and what becomes of other data."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import set_params
from dicom_files import dicom
from PIL import Image

from ral.cli.__main__ import main
from ral.data.splits.holdout import sealed
from ral.errors import UserError
from ral.external import run
from ral.external.labelled import LabelledImages, as_test
from ral.files import read_json
from ral.inference import records
from ral.inference.bundle import BUNDLE

FINDINGS = ["Effusion", "Mass", "Hernia"]


def evaluate(*arguments: object, code: int = 0) -> None:
    """Run `ral evaluate` in this process."""
    assert main(["evaluate", *map(str, arguments), "--workers", "2"]) == code


def described(out: Path) -> dict:
    return read_json(out / "metrics.json")["external_validation"]


def close(one: object, other: object) -> bool:
    """Equal but for rounding of the logits, which depends on the number of images in a pass."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(close(one[name], other[name]) for name in one)
    return one == pytest.approx(other, abs=2e-5) if isinstance(one, float) else one == other


@pytest.fixture(scope="session")
def studies(project: Path) -> pd.DataFrame:
    return pd.read_parquet(project / "data/prepared/studies.parquet")


@pytest.fixture
def table(studies: pd.DataFrame, tmp_path: Path) -> Path:
    """The test images as a hospital would list them, without the endings of the files."""
    test = studies[studies["split"] == "test"]
    rows = test[["patient_id", "sex", "age_years", "view", *FINDINGS]].assign(
        image_id=test["image_id"].str.removesuffix(".png"), report="not to be read"
    )
    rows["age_years"] = rows["age_years"].astype("Int64")
    rows[FINDINGS] = rows[FINDINGS].astype("Int64")
    path = tmp_path / "hospital/labels.csv"
    path.parent.mkdir()
    rows.to_csv(path, index=False)
    return path


def change(table: Path, row: int, **values: object) -> None:
    rows = pd.read_csv(table, dtype=str, keep_default_na=False)
    for name, value in values.items():
        rows.loc[row, name] = value
    rows.to_csv(table, index=False)


def test_the_metrics_on_its_own_test_images_are_those_of_the_pipeline(
    project: Path, release: Path, tmp_path: Path
) -> None:
    evaluate(
        "--model", release, "--data", project / "data/prepared", "--split", "test", "-o", tmp_path / "out"
    )
    metrics = read_json(tmp_path / "out/metrics.json")
    known = metrics.pop("external_validation")["patients_of_model"]
    assert known == {"train": 0, "val": 0, "test": metrics["test"]["patients"]}
    assert "this is no external validation" in (tmp_path / "out/report.html").read_text()
    assert close(metrics, read_json(project / "reports/metrics.json"))
    for name in ("findings", "operating", "reliability", "decision_curves", "audit"):
        mine, pipeline = (
            pd.read_csv(folder / f"{name}.csv") for folder in (tmp_path / "out", project / "reports")
        )
        pd.testing.assert_frame_equal(mine, pipeline, check_exact=False, atol=2e-5)


def test_with_the_logits_of_the_pipeline_every_number_is_equal(project: Path, studies: pd.DataFrame) -> None:
    findings = tuple(read_json(project / "models/model.json")["findings"])
    test = studies[studies["split"] == "test"]
    excluded = pd.DataFrame(columns=["image_id", "reason"])
    data = LabelledImages("own", "nih", as_test(test, findings), lambda: iter(()), excluded, True)
    logits = pd.read_parquet(project / "models/logits/test.parquet")
    record = records.read_record(
        project, findings, read_json(project / "reports/calibration.json")["version"]
    )
    evaluation = run.evaluate(data, logits, record, True)
    assert run.tables.to_metrics(evaluation).to_json() == read_json(project / "reports/metrics.json")
    for name, part in run.tables_of(evaluation).items():
        if name not in ("calibration.csv", "characteristics.csv"):
            text = part.assign(data=evaluation.data).to_csv(index=False, lineterminator="\n")
            assert text == (project / "reports" / name).read_text(), name


@pytest.mark.long
def test_the_layout_of_the_publisher_gives_the_same(
    project: Path, release: Path, small_phantom: Path, tmp_path: Path
) -> None:
    evaluate("--model", release, "--data", small_phantom, "--source", "nih", "-o", tmp_path / "raw")
    evaluate("--model", release, "--data", project / "data/prepared", "-o", tmp_path / "prepared")
    raw, prepared = (read_json(tmp_path / name / "metrics.json") for name in ("raw", "prepared"))
    assert raw["external_validation"]["patients_of_model"]["train"] > 0
    assert (tmp_path / "raw/predictions.csv").read_text().count("\n") == 401
    for metrics in (raw, prepared):
        del metrics["external_validation"]
    assert raw == prepared
    assert "also in the training or validation data" in (tmp_path / "raw/report.html").read_text()


def test_a_table_with_a_folder_of_images(
    release: Path,
    table: Path,
    folder: Path,
    studies: pd.DataFrame,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    out = tmp_path / "out"
    arguments = ("--model", release, "--data", table, "--images", folder, "-o", out)
    evaluate(*arguments)
    printed = capsys.readouterr().out
    assert printed.startswith("PHANTOM DATA: ")
    content = described(out)
    model = read_json(release / "model/model.json")["findings"]
    assert content["findings"]["evaluated"] == [name for name in model if name in FINDINGS]
    assert set(content["findings"]["not_labelled"]) == set(model) - set(FINDINGS)
    assert content["model"]["name"].startswith("v0.1.0@")
    # The same images as in the prepared set, so the metrics of these findings are the pipeline's.
    mine = pd.read_csv(out / "findings.csv").set_index("finding")["auroc"]
    pipeline = pd.read_csv(release / "findings.csv").set_index("finding")["auroc"]
    np.testing.assert_allclose(mine, pipeline[mine.index], atol=2e-5)
    predicted = pd.read_csv(out / "predictions.csv")
    assert len(predicted) == (studies["split"] == "test").sum()
    assert {"Mass_label", "Mass_probability", "Mass_decision", "Edema_probability"} < set(predicted.columns)
    assert "Edema_label" not in predicted
    assert (out / "excluded.csv").read_text() == "image_id,reason\n"
    page = (out / "report.html").read_text()
    for text in ("External validation on labels.csv", content["model"]["name"], "PHANTOM DATA", "as released",
                 "Not labelled in the data, not counted", "Research software, not a medical device"):  # fmt: skip
        assert text in page, text
    assert "not to be read" not in page
    assert str(tmp_path) not in page
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    evaluate(*arguments)  # replaces its own outputs, with the same bytes
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first


def test_bad_and_missing_images_are_listed_and_not_counted(
    release: Path, table: Path, folder: Path, tmp_path: Path
) -> None:
    images = Path(shutil.copytree(folder, tmp_path / "images"))
    ids = pd.read_csv(table)["image_id"].tolist()
    paths = [next(images.rglob(f"{image_id}.png")) for image_id in ids[:3]]
    paths[0].write_bytes(paths[0].read_bytes()[:300])
    paths[1].write_bytes(b"")
    paths[2].unlink()
    out = tmp_path / "out"
    evaluate("--model", release, "--data", table, "--images", images, "-o", out, code=3)
    excluded = pd.read_csv(out / "excluded.csv").set_index("image_id")["reason"]
    assert set(excluded.index) == set(ids[:3])
    assert "cannot be decoded" in excluded[ids[0]]
    assert excluded[ids[1]].startswith("is not an image")
    assert excluded[ids[2]] == "no image"
    metrics = read_json(out / "metrics.json")
    assert metrics["test"]["rows"] == len(ids) - 3
    predicted = pd.read_csv(out / "predictions.csv")["image"]
    assert set(predicted) == set(ids[3:])
    # As if the rows had never been there.
    rows = pd.read_csv(table, dtype=str, keep_default_na=False).iloc[3:]
    rows.to_csv(table, index=False)
    evaluate("--model", release, "--data", table, "--images", images, "-o", tmp_path / "without")
    without = read_json(tmp_path / "without/metrics.json")
    del metrics["external_validation"], without["external_validation"]
    assert metrics == without


@pytest.mark.long
def test_dicom_files_without_an_ending_are_read(
    release: Path, table: Path, folder: Path, tmp_path: Path
) -> None:
    images = Path(shutil.copytree(folder, tmp_path / "images"))
    evaluate("--model", release, "--data", table, "--images", images, "-o", tmp_path / "png")
    image_id = pd.read_csv(table)["image_id"].iloc[0]
    path = next(images.rglob(f"{image_id}.png"))
    pixels = np.asarray(Image.open(path).convert("L"))
    window = {"WindowCenter": 128, "WindowWidth": 256}
    path.with_suffix("").write_bytes(dicom(pixels.astype(np.uint16), bits=8, **window))
    path.unlink()
    evaluate("--model", release, "--data", table, "--images", images, "-o", tmp_path / "dicom")
    png, same = (
        pd.read_csv(tmp_path / name / "predictions.csv").set_index("image") for name in ("png", "dicom")
    )
    logits = [name for name in png.columns if name.endswith("_logit")]
    assert len(same) == len(png)
    np.testing.assert_allclose(
        same.loc[image_id, logits].astype(float), png.loc[image_id, logits].astype(float), atol=0.2
    )


def test_unknown_and_uncertain_labels_are_ignored(
    release: Path, table: Path, folder: Path, tmp_path: Path
) -> None:
    change(table, 0, Mass="", Effusion="-1")
    evaluate("--model", release, "--data", table, "--images", folder, "-o", tmp_path / "out")
    findings = pd.read_csv(tmp_path / "out/findings.csv").set_index("finding")
    rows = read_json(tmp_path / "out/metrics.json")["test"]["rows"]
    assert findings["test_rows"].to_dict() == {"Effusion": rows - 1, "Mass": rows - 1, "Hernia": rows}


def test_without_positives_a_finding_is_not_counted(
    release: Path, table: Path, folder: Path, tmp_path: Path
) -> None:
    rows = pd.read_csv(table, dtype=str, keep_default_na=False).assign(Mass="0")
    rows.to_csv(table, index=False)
    evaluate("--model", release, "--data", table, "--images", folder, "-o", tmp_path / "out")
    metrics = read_json(tmp_path / "out/metrics.json")
    assert metrics["macro"]["auroc"]["findings"] == 2
    assert "0 patients with positive" in metrics["not_estimable"]["Mass"]


def test_without_patients_intervals_are_by_image_and_the_page_says_so(
    release: Path, table: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = pd.read_csv(table, dtype=str, keep_default_na=False).drop(columns="patient_id")
    rows.to_csv(table, index=False)
    arguments = ("--model", release, "--data", table, "--images", folder, "-o", tmp_path / "out")
    evaluate(*arguments, code=1)
    message = capsys.readouterr().err
    assert "no column patient_id" in message
    assert "--without-patients" in message
    evaluate(*arguments, "--without-patients")
    metrics = read_json(tmp_path / "out/metrics.json")
    assert metrics["test"]["patients"] == metrics["test"]["rows"]
    assert not metrics["external_validation"]["data"]["patients_known"]
    assert metrics["external_validation"]["patients_of_model"] is None
    page = (tmp_path / "out/report.html").read_text()
    assert "bootstrap resamples of the images" in page
    assert "too narrow" in page
    assert "unknown patients" in capsys.readouterr().out


def test_no_common_finding_names_both_lists(
    release: Path, table: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = pd.read_csv(table, dtype=str, keep_default_na=False)
    rows.rename(columns={"Effusion": "effusions", "Mass": "Tumor", "Hernia": "HH"}).to_csv(table, index=False)
    evaluate("--model", release, "--data", table, "--images", folder, "-o", tmp_path / "out", code=1)
    message = capsys.readouterr().err
    for text in ("The model has Atelectasis, Consolidation", "effusions, Tumor", "effusions to Effusion"):
        assert text in message, text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"Mass": "yes"}, ["labels are in the vocabulary", "Mass='yes'", "1, 0, -1"]),
        ({"patient_id": ""}, ["patient id is there"]),
        ({"view": "p.a."}, ["view is known", "data.table.views"]),
        ({"image_id": "SECOND"}, ["image ids are unique"]),
    ],
)
def test_a_mutilated_table_is_refused(
    values: dict, words: list[str], release: Path, table: Path, folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    if values.get("image_id") == "SECOND":
        values = {"image_id": pd.read_csv(table)["image_id"].iloc[1]}
    change(table, 0, **values)
    evaluate("--model", release, "--data", table, "--images", folder, "-o", tmp_path / "out", code=1)
    message = capsys.readouterr().err
    assert "did not pass validation" in message
    for word in words:
        assert word in message, message
    assert not (tmp_path / "out").exists()


def test_a_params_file_describes_other_columns(
    release: Path, table: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = pd.read_csv(table, dtype=str, keep_default_na=False)
    rows = rows.rename(columns={"image_id": "Aufnahme", "patient_id": "Patient", "Mass": "Raumforderung"})
    rows["Mass"], rows["Gas"] = "0", "1"  # a column of that name is not what the file says
    rows.to_csv(table, index=False, sep=";")
    params = tmp_path / "hospital.yaml"
    section = {
        "source": "table", "root": str(table.parent),
        "table": {
            "file": table.name, "separator": ";", "image_id": "Aufnahme", "patient_id": "Patient",
            "findings": {"Mass": "Raumforderung", "Gas": "Gas"},
        },
    }  # fmt: skip
    params.write_text(json.dumps({"data": section}))
    evaluate("--model", release, "--data", params, "--images", folder, "-o", tmp_path / "out")
    content = described(tmp_path / "out")
    assert content["findings"]["evaluated"] == ["Mass"]
    assert content["findings"]["not_in_model"] == ["Gas"]
    pipeline = pd.read_csv(release / "findings.csv").set_index("finding").loc["Mass"]
    assert pd.read_csv(tmp_path / "out/findings.csv")["auroc"][0] == pytest.approx(
        pipeline["auroc"], abs=2e-5
    )
    section["table"]["findings"] = {"Gas": "Gas"}
    params.write_text(json.dumps({"data": section}))
    evaluate("--model", release, "--data", params, "--images", folder, "-o", tmp_path / "none", code=1)
    assert "no finding in common" in capsys.readouterr().err


def test_sealed_patients_stay_sealed(project: Path, tmp_path: Path, studies: pd.DataFrame) -> None:
    copy = Path(shutil.copytree(project, tmp_path / "project"))
    set_params(copy, {"evaluate": {"sealed": 0.5}})
    evaluate("--model", copy, "--data", copy / "data/prepared", "--split", "test", "-o", tmp_path / "out")
    hidden = sealed(studies, 0.5)
    excluded = pd.read_csv(tmp_path / "out/excluded.csv")
    assert set(excluded["image_id"]) == set(studies.loc[hidden, "image_id"])
    assert set(excluded["reason"]) == {"sealed test patient of the model"}
    assert read_json(tmp_path / "out/metrics.json")["test"]["rows"] == (
        studies["split"] == "test"
    ).sum() - len(excluded)
    shown = pd.read_csv(tmp_path / "out/predictions.csv")["image"]
    assert set(shown).isdisjoint(excluded["image_id"])


def test_the_folder_of_other_files_is_not_written(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    reports = Path(shutil.copytree(project / "reports", tmp_path / "reports"))
    before = {path: path.read_bytes() for path in reports.rglob("*") if path.is_file()}
    evaluate("--model", project, "--data", project / "data/prepared", "-o", reports, code=1)
    assert "has other files" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in reports.rglob("*") if path.is_file()} == before


def test_what_does_not_fit_is_refused(
    project: Path, release: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = ("-o", tmp_path / "out")
    prepared = Path(shutil.copytree(project / "data/prepared", tmp_path / "prepared"))
    for arguments, words in (
        (("--data", prepared, "--source", "nih"), "--source does not go with a prepared set"),
        (("--data", tmp_path / "nowhere.csv"), "does not exist"),
        (("--data", tmp_path), "folder without a prepared set"),
        (("--data", table, "--images", tmp_path / "hospital"), "No image of the table is below"),
        (("--data", table, "--image-column", "file"), "--image-column"),
    ):
        evaluate("--model", release, *arguments, *out, code=1)
        assert words in capsys.readouterr().err
    shard = next((prepared / "shards").iterdir())
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    evaluate("--model", release, "--data", prepared, *out, code=1)
    assert "SHA-256" in capsys.readouterr().err
    dataset = read_json(prepared / "dataset.json")
    dataset["preparation"]["fit"] = "pad"
    (prepared / "dataset.json").write_text(json.dumps(dataset))
    evaluate("--model", release, "--data", prepared, *out, code=1)
    assert "preprocess.fit=stretch" in capsys.readouterr().err
    older = Path(shutil.copytree(release, tmp_path / "v0.0.1"))
    (older / "findings.csv").unlink()
    bundle = read_json(older / BUNDLE)
    del bundle["files"]["findings.csv"]
    (older / BUNDLE).write_text(json.dumps(bundle))
    evaluate("--model", older, "--data", project / "data/prepared", *out, code=1)
    assert "findings.csv does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_files_of_one_name_are_refused(release: Path, table: Path, folder: Path, tmp_path: Path) -> None:
    from ral.external.tables import match_files

    (tmp_path / "x/y").mkdir(parents=True)
    for name in ("x/1.png", "x/y/1.png", "x/y/2", "x/2.dcm"):
        (tmp_path / name).touch()
    ids = pd.Series(["x/1.png", "2", "3"])
    assert match_files(tmp_path, ids)[["image_id", "path"]].values.tolist() == [
        ["x/1.png", "x/1.png"],
        ["2", "x/y/2"],
    ]
    with pytest.raises(UserError, match="may be"):
        match_files(tmp_path, pd.Series(["1"]))
