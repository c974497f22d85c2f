"""`open-sealed`: the sealed test images, scored once by hand and written down."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import set_params
from simulated_release import Ral, night

from ral.data.splits.holdout import sealed
from ral.errors import UserError
from ral.evaluation.rows import read_studies
from ral.files import read_json


def test_opening_the_sealed_set_is_written_down(
    ral: Ral, commit: Callable[[str], str], project: Path, tmp_path: Path
) -> None:
    night(ral, commit, project, "night-1", "--approved-by", "Ada")
    arguments = ("v0.1.0", "--prepared", project / "data/prepared", "--params", project / "params.yaml")
    output = ral("open-sealed", *arguments, "--reason", "for the paper", "--by", "Ada")
    assert "1 time so far" in output
    assert "PHANTOM" in output
    metrics = json.loads((tmp_path / "state/releases/v0.1.0.sealed-1.json").read_text())
    studies = read_studies(project / "data/prepared")
    assert metrics["test"]["rows"] == sealed(studies, 0.3).sum()
    assert metrics["macro"]["auroc"]["value"] is not None
    assert "2 times so far" in ral("open-sealed", *arguments, "--reason", "again")
    assert "for the paper" in ral("ledger")
    set_params(project, {"evaluate": {"sealed": 0.0}})
    with pytest.raises(UserError, match=r"No test image .* is sealed"):
        ral("open-sealed", *arguments, "--reason", "nothing")
    assert ral("ledger").count("open-sealed") == 2


def test_the_sealed_set_is_measured_with_the_released_calibration(
    ral: Ral, commit: Callable[[str], str], project: Path, tmp_path: Path
) -> None:
    night(ral, commit, project, "night-1", "--approved-by", "Ada")
    arguments = ("--prepared", project / "data/prepared", "--params", project / "params.yaml")

    def opened(number: int) -> dict[str, Any]:
        ral("open-sealed", "v0.1.0", *arguments, "--reason", "again")
        metrics = read_json(tmp_path / f"state/releases/v0.1.0.sealed-{number}.json")
        assert metrics.pop("opened_before") == number - 1
        return metrics

    first = opened(1)
    assert first["macro"]["f1"]["value"] is not None
    assert first["macro"]["ece"]["value"] is not None
    # Maps, thresholds and tiers were fitted when the model was released: other labels, or another rule, change nothing.
    path = project / "data/prepared/studies.parquet"
    studies = pd.read_parquet(path)
    findings = read_json(project / "models/model.json")["findings"]
    fitted_on = studies["split"] != "test"
    studies.loc[fitted_on, findings] = 1 - studies.loc[fitted_on, findings]
    studies.to_parquet(path, index=False)
    set_params(project, {"evaluate": {"threshold": {"rule": "cost"}}})
    assert opened(2) == first
