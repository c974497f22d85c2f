"""What `ral evaluate` refuses, hides or says; no model is trained for these tests."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from untrained import write_project

from ral.config.evaluate import EvaluateConfig
from ral.data.splits.holdout import sealed
from ral.errors import UserError
from ral.evaluation.external import DataUsed, ExternalValidation, FindingsUsed, ModelUsed, Patients
from ral.external import command, run
from ral.external.labelled import SEALED_UNKNOWN, LabelledImages, hide_sealed
from ral.external.tables import open_table, own_table
from ral.files import read_json, write_json
from ral.inference import records
from ral.inference.records import ModelRecord
from ral.inference.released import open_model
from ral.preparation import Preparation

PREPARATION = Preparation.model_validate({"size": 64, "fit": "stretch", "range": "own"})


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Three images of two patients, one with an impossible age."""
    path = tmp_path / "hospital/labels.csv"
    path.parent.mkdir()
    path.write_text(
        "image_id,patient_id,age_years,Mass\nMEIER_1,MEIER,61,1\nMEIER_2,MEIER,777,0\nB_1,B,50,0\n"
    )
    for name in ("MEIER_1", "MEIER_2", "B_1"):
        pixels = np.random.default_rng(len(name)).integers(0, 255, (64, 64), np.uint8)
        Image.fromarray(pixels).save(path.parent / f"{name}.png")
    return path


def test_warnings_of_a_pseudonymised_table_quote_nothing(table: Path, tmp_path: Path) -> None:
    config = own_table(table, ("Mass",), "image_id", "patient_id")
    data = open_table(config, "labels.csv", table.parent, "fail", PREPARATION)
    assert "MEIER_2: 777" in "\n".join(data.notes)
    (tmp_path / "salt").write_bytes(bytes(32))
    hidden = config.model_copy(update={"pseudonymise": str(tmp_path / "salt")})
    data = open_table(hidden, "labels.csv", table.parent, "fail", PREPARATION)
    assert "age is possible" in "\n".join(data.notes)
    for text in ("MEIER", "777"):
        assert text not in "\n".join(data.notes)


def labelled(patients: list[str], patients_known: bool = True) -> LabelledImages:
    ids = [f"{name}.png" for name in patients]
    rows = pd.DataFrame({"image_id": ids, "patient_id": patients if patients_known else ids, "split": "test"})
    excluded = pd.DataFrame(columns=["image_id", "reason"])
    return LabelledImages("hospital", "table", rows, lambda: iter(()), excluded, patients_known)


def record(share: float, split: "pd.Series | None") -> ModelRecord:
    config = EvaluateConfig.model_construct(sealed=share)
    return ModelRecord(findings=(), config=config, source="nih", split=split)


def test_data_of_sealed_patients_only_are_refused() -> None:
    patients = [f"P{number}" for number in range(20)]
    split = pd.Series("test", index=patients)
    hidden = sealed(pd.DataFrame({"patient_id": patients, "split": "test"}), 0.5)
    of_sealed = [name for name, chosen in zip(patients, hidden, strict=True) if chosen]
    with pytest.raises(UserError, match="sealed"):
        hide_sealed(labelled(of_sealed), record(0.5, split))
    left = hide_sealed(labelled(patients), record(0.5, split))
    assert set(left.rows["patient_id"]) == set(patients) - set(of_sealed)
    assert left.notes == ()


def test_unknown_sealed_patients_are_named_in_a_note() -> None:
    patients = ["P1", "P2"]
    split = pd.Series("train", index=patients)
    assert hide_sealed(labelled(patients), record(0.5, None)).notes == (SEALED_UNKNOWN,)
    assert hide_sealed(labelled(patients, False), record(0.5, split)).notes == (SEALED_UNKNOWN,)
    # A set without patients, of the model's own project: the ids of its images are known.
    own = split.rename(lambda name: f"{name}.png")
    assert hide_sealed(labelled(patients, False), record(0.5, own)).notes == ()
    assert hide_sealed(labelled(patients), record(0.0, None)).notes == ()


@pytest.mark.parametrize(("overlap", "said"), [(None, True), (Patients(train=0, val=0, test=0), False)])
def test_an_unknown_overlap_of_patients_is_said(overlap: Patients | None, said: bool) -> None:
    content = ExternalValidation(
        model=ModelUsed(name="m", source="nih", phantom=False, calibration="0", threshold_rule="max_f1"),
        data=DataUsed(
            name="hospital", source="table", split=None, images=3, phantom=False, patients_known=True, excluded={}, notes=[]
        ),
        findings=FindingsUsed(evaluated=["Mass"], not_labelled=[], not_in_model=[]),
        patients_of_model=overlap,
        unlike_training_images={},
    )  # fmt: skip
    expected = ["It is not known whether patients are also in the data of the model."] if said else []
    assert run.messages(content) == expected


@pytest.mark.parametrize(
    ("form", "given", "words"),
    [
        ("table", ["--split", "test"], "--split does not go with"),
        ("source", ["--split", "test"], "--split does not go with"),
        ("yaml", ["--split", "all"], "--split does not go with"),
        ("source", ["--image-column", "file"], "--image-column does not go with --source"),
        ("yaml", ["--patient-column", "P"], "--patient-column does not go with a parameter file"),
        ("prepared", ["--image-column", "file"], "--image-column does not go with a prepared set"),
        ("prepared", ["--patient-column", "P"], "--patient-column does not go with a prepared set"),
    ],
)
def test_options_without_an_effect_are_refused(form: str, given: list[str], words: str, table: Path) -> None:
    data = {"table": table, "yaml": table.with_suffix(".yaml")}.get(form, table.parent)
    if form == "prepared":
        (data / "dataset.json").touch()
        (data / "shards").mkdir()
    source = ["--source", "nih"] if form == "source" else []
    arguments = ["--model", ".", "--data", str(data), "-o", "out", *source, *given]
    options = command.parser().parse_args(arguments)
    with pytest.raises(UserError) as caught:
        command._open_data(options, None)  # type: ignore[arg-type] - refused before the model matters
    assert words in str(caught.value)


def test_the_record_is_of_the_opened_model(tmp_path: Path) -> None:
    project = write_project(tmp_path / "project")
    model = open_model(project)
    findings = "finding,tier,train_prevalence,train_positives,threshold\n"
    findings += "".join(f"{name},head,0.1,10,\n" for name in model.findings)
    (project / "reports/findings.csv").write_text(findings)
    version = model.calibration.version
    assert len(records.read_record(project, model.findings, version).findings) == len(model.findings)
    path = project / "reports/calibration.json"
    write_json(path, read_json(path) | {"version": "ffffffffffff"})
    with pytest.raises(UserError, match="of another model"):
        records.read_record(project, model.findings, version)


def test_an_export_beside_a_project_is_refused(tmp_path: Path) -> None:
    project = write_project(tmp_path / "project")
    model = open_model(project)
    export = project / "export"
    export.mkdir()
    (export / "export.json").write_text("{}")
    with pytest.raises(UserError, match="is an export"):
        records.read_record(export, model.findings, model.calibration.version)
