"""The step: an empty result if it is off, the same bytes each time if it is on, and sealed patients in neither."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import set_params
from robustness_inputs import Sums, make_subject, write_images
from untrained import FINDINGS, SIZE, write_project

from ral.config.base import load
from ral.config.environment import load_environment
from ral.config.evaluate import EvaluateConfig
from ral.config.robustness import ProbesConfig, RobustnessParams
from ral.data.splits.holdout import sealed
from ral.errors import UserError
from ral.robustness.contents import METRICS, Robustness
from tasks.robustness import run

FEW = {
    "jpeg": [50], "bits": [4], "blur": [], "noise": [5], "gamma": [], "downscale": [], "rotate": [], "corners": [],
    "pad": False,
}  # fmt: skip


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with an untrained network and prepared images; Hernia has no calibration map."""
    folder = write_project(tmp_path / "project")
    write_images(folder / "data/prepared", SIZE, FINDINGS)
    set_params(folder, {"evaluate": {"replicates": 100}, "robustness": {"shifts": FEW, "threads": 1}})
    return folder


def audit(project: Path, out: str = "reports/robustness") -> Path:
    """Run the step in a project; returns the folder that it writes."""
    params = load(project / "params.yaml", RobustnessParams)
    environment = load_environment(project, {"RAL_STATE_DIR": str(project / "state")})
    run(
        params,
        environment,
        project / "data/validated",
        project / "data/prepared",
        project / "models",
        project / "reports",
        project / out,
    )
    return project / out


def test_off_by_default(project: Path) -> None:
    shutil.rmtree(project / "models")  # nothing is scored
    out = audit(project)
    assert [path.name for path in out.iterdir()] == ["robustness.json"]
    assert json.loads((out / "robustness.json").read_text()) == {
        "data": "images",
        "notice": "research software, not a medical device",
    }
    assert Robustness.read(out / "robustness.json").audited is None


def test_results_are_the_same_bytes_each_time(project: Path) -> None:
    set_params(project, {"robustness": {"enabled": True}})
    first, second = audit(project), audit(project, "again")
    names = ["attacks.csv", "flip.csv", "robustness.json", "shifts.csv"]
    assert sorted(path.name for path in first.iterdir()) == names
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    result = Robustness.read(first / "robustness.json")
    assert result.shifts is not None
    assert [info.name for info in result.shifts.shifts] == ["jpeg_50", "bits_4", "noise_5", "flip"]
    assert result.probes.left_out.keys() == set(ProbesConfig().attributes)  # these images have no attributes
    assert [info.name for info in result.attacks.attacks] == ["finding_1", "finding_2", "all_1", "all_2"]
    assert (
        len(pd.read_csv(first / "attacks.csv")) == len(result.attacks.rows) == 4 * 2 * (1 + 3 + len(FINDINGS))
    )
    table = pd.read_csv(first / "shifts.csv")
    assert len(table) == len(result.shifts.rows) == 4 * len(METRICS) * (1 + 3 + len(FINDINGS))
    assert set(table["data"]) == {"images"}
    flips = pd.read_csv(first / "flip.csv")
    assert flips["name"].tolist() == [row.name for row in result.flip.rows]
    # Hernia has no positive test image here, but Mass is the last finding: see write_images.
    without = {finding.name for finding in result.audited.findings if finding.not_estimable}
    assert without == {"Mass"}
    assert result.shifts.row("flip", "finding", "Effusion", "brier").findings == 1
    assert result.shifts.row("flip", "finding", "Hernia", "ap").findings == 1
    assert result.shifts.row("flip", "finding", "Hernia", "calls").findings == 0
    assert result.flip.row("finding", "Hernia").probability is None
    assert result.flip.row("finding", "Effusion").changed_calls is not None


def test_without_the_flip_there_is_no_flip_audit(project: Path) -> None:
    set_params(project, {"robustness": {"enabled": True, "shifts": {"flip": False}}})
    result = Robustness.read(audit(project) / "robustness.json")
    assert result.flip is None
    assert len(result.shifts.shifts) == 3


def test_results_of_other_runs_are_refused(project: Path) -> None:
    set_params(project, {"robustness": {"enabled": True}})
    path = project / "reports/calibration.json"
    content = json.loads(path.read_text())
    content["findings"]["Nodule"] = content["findings"].pop("Mass")
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"different findings.*Run `dvc repro evaluate`"):
        audit(project)


def test_sealed_patients_are_not_scored(prepared: Path, config: EvaluateConfig) -> None:
    everyone = make_subject(prepared, Sums(), config)
    some = make_subject(prepared, Sums(), config.model_copy(update={"sealed": 0.4}))
    studies = everyone.dataset.studies
    hidden = set(studies.loc[sealed(studies, 0.4), "image_id"])
    assert hidden
    assert set(everyone.test["image_id"]) - hidden == set(some.test["image_id"])
    assert some.score(None).shape == (80 - len(hidden), 3)
    # Logits are those of the images, in the order of the table.
    rows = [everyone.test["image_id"].tolist().index(name) for name in some.test["image_id"]]
    assert (abs(some.score(None) - everyone.score(None)[rows]) < 1e-5).all()


def test_probes_of_what_the_data_has(project: Path) -> None:
    """File types are those of the files' names, though the step reads prepared images only."""
    path = project / "data/prepared/studies.parquet"
    studies = pd.read_parquet(path)
    number = np.arange(len(studies))
    ends = np.where(number % 3, ".png", ".jpg")
    studies = studies.assign(
        path="images.zip", member=studies["image_id"] + ends, view=np.where(number % 2, "PA", "AP")
    )
    studies.to_parquet(path, index=False)
    off = {"shifts": FEW | {"jpeg": [], "bits": [], "noise": [], "flip": False}, "attacks": {"eps": []}}
    set_params(project, {"robustness": {"enabled": True, **off}})
    out = audit(project)
    result = Robustness.read(out / "robustness.json")
    assert result.attacks is result.flip is None
    assert [(row.attribute, row.value, row.others) for row in result.probes.probes] == [
        ("file_type", "JPEG", "PNG"),
        ("view", "AP", "PA"),
    ]
    assert all(row.low < row.auroc < row.high for row in result.probes.probes)
    assert {"probes.csv", "within.csv", "strata.csv"} <= {path.name for path in out.iterdir()}
