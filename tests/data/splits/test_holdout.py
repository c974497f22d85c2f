"""Sealed patients and gate sets: chosen by id alone, independent of each other, and in no figure that is written."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from threadpoolctl import threadpool_limits

from ral.config.base import load
from ral.config.evaluate import EvaluateParams
from ral.data.splits.holdout import gate_set, sealed, sealed_patients, unsealed
from ral.data.splits.methods import patient_hash
from ral.evaluation.compare import show
from ral.files import read_json, write_json
from tasks.evaluate import run

ROOT = Path(__file__).parents[3]
Tables = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]


def patients(number: int) -> pd.DataFrame:
    ids = [f"p{n}" for n in range(number)]
    return pd.DataFrame({"image_id": ids, "patient_id": ids, "split": "test"})


def test_new_patients_never_move_old_ones() -> None:
    few, many = patients(1000), patients(3000)
    assert (sealed(many, 0.3)[:1000] == sealed(few, 0.3)).all()
    assert (gate_set(many["patient_id"], 3, 4)[:1000] == gate_set(few["patient_id"], 3, 4)).all()
    # A larger share seals more, and unseals nobody.
    assert (sealed(many, 0.4) >= sealed(many, 0.3)).all()
    assert not sealed(many, 0.0).any()


def test_sets_share_out_all_patients_and_come_round() -> None:
    ids = patients(3000)["patient_id"]
    sets = [gate_set(ids, 3, turn) for turn in range(6)]
    assert (np.sum(sets[:3], axis=0) == 1).all()
    for turn in range(3):
        assert (sets[turn] == sets[turn + 3]).all()
        assert 0.28 < sets[turn].mean() < 0.39


def test_sealing_splitting_and_gate_sets_are_independent() -> None:
    table = patients(20_000)
    hidden, first = sealed(table, 0.5), gate_set(table["patient_id"], 2, 0)
    low = np.array([patient_hash(name, 0) < 0.5 for name in table["patient_id"]])
    for one, other in ((hidden, first), (hidden, low), (first, low)):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.03


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
