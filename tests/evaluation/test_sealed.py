"""Sealed patients: only in the test split, and in no metric that is written."""

from pathlib import Path

import pandas as pd
import pytest
from threadpoolctl import threadpool_limits

from ral.config.base import load
from ral.config.evaluate import EvaluateParams
from ral.data.splits.holdout import sealed, sealed_patients, unsealed
from ral.evaluation.compare import show
from ral.files import read_json, write_json
from tasks.evaluate import run

ROOT = Path(__file__).parents[2]
Tables = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]


def test_only_test_images_are_sealed(tables: Tables) -> None:
    studies, val, logits = tables
    hidden = sealed(studies, 0.5)
    assert set(studies.loc[hidden, "split"]) == {"test"}
    # Whole patients.
    assert set(studies.loc[hidden, "patient_id"]).isdisjoint(studies.loc[~hidden, "patient_id"])
    kept, own_val, own = unsealed(studies, 0.5, val, logits)
    assert len(kept) == (~hidden).sum()
    assert len(own_val) == len(val)
    assert len(own) == len(logits) - hidden.sum()
    assert sealed_patients(studies, 0.5) == hidden.sum() / 3
    # Logits of no image at all are not hidden with them: they stay an error.
    stray = logits.head(1).assign(image_id="nobody")
    assert "nobody" in set(unsealed(studies, 0.5, pd.concat([logits, stray]))[1]["image_id"])


def written(folder: Path, tables: Tables, share: float, previous: pd.DataFrame) -> dict[str, bytes]:
    """Bytes of what the step evaluate and the comparison write."""
    studies, val, logits = tables
    for name in ("prepared", "logits", "baseline"):
        (folder / name).mkdir(parents=True)
    studies.assign(sex="F", age_years=50.0).to_parquet(folder / "prepared/studies.parquet")
    write_json(folder / "prepared/dataset.json", {"findings": ["Effusion", "Mass", "Hernia", "Edema"]})
    val.to_parquet(folder / "logits/val.parquet")
    logits.to_parquet(folder / "logits/test.parquet")
    previous.to_parquet(folder / "baseline/test_logits.parquet")
    text = (ROOT / "params.yaml").read_text().replace("sealed: 0.0", f"sealed: {share}")
    (folder / "params.yaml").write_text(text.replace("replicates: 1000", "replicates: 100"))
    params = load(folder / "params.yaml", EvaluateParams)
    run(params, folder / "prepared", folder / "logits", folder / "baseline", folder / "reports")
    models = {"a": previous, "b": logits}
    show(models, folder / "prepared/studies.parquet", "test", folder / "params.yaml", folder / "reports/compare.csv")  # fmt: skip
    return {path.name: path.read_bytes() for path in (folder / "reports").iterdir()}


@pytest.mark.parametrize("share", [0.4, 0.0])
def test_a_difference_in_sealed_images_changes_no_byte(tables: Tables, tmp_path: Path, share: float) -> None:
    studies, val, logits = tables
    names = ["Effusion", "Mass", "Hernia"]
    previous = logits.assign(**{name: logits[name] * 0.5 - 1 for name in names})
    hidden = sealed(studies, 0.4)
    of_hidden = logits["image_id"].isin(studies.loc[hidden, "image_id"])
    planted = logits.copy(), previous.copy(), studies.copy()
    for table in planted[:2]:
        table.loc[of_hidden, names] = -7 * table.loc[of_hidden, names]
    planted[2].loc[hidden, "Effusion"] = 1 - planted[2].loc[hidden, "Effusion"]
    with threadpool_limits(1):
        before = written(tmp_path / "before", tables, share, previous)
        after = written(tmp_path / "after", (planted[2], val, planted[0]), share, planted[1])
    changed = {name for name in before if before[name] != after[name]}
    if share:
        assert not changed
        test = read_json(tmp_path / "before/reports/metrics.json")["test"]
        assert test["sealed_patients"] == hidden.sum() / 3
        assert test["rows"] == 600 - hidden.sum()
    else:
        # So that the test can fail: what is not sealed is seen.
        assert {"metrics.json", "findings.csv", "comparison.csv", "compare.csv"} <= changed
        assert "sealed_patients" not in read_json(tmp_path / "before/reports/metrics.json")["test"]
