"""Comparison with the previous model: common images and findings only, the better model, nothing in common."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ral.config.base import load
from ral.config.evaluate import EvaluateParams
from ral.data.baseline import accept_logits, read_logits
from ral.errors import UserError
from ral.evaluation.baseline_comparison import comparison
from ral.evaluation.compare import compare

ROOT = Path(__file__).parent.parent.parent
CONFIG = load(ROOT / "params.yaml", EvaluateParams).evaluate.model_copy(update={"replicates": 300})

Tables = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]


def noisy(logits: pd.DataFrame) -> pd.DataFrame:
    names = logits.columns.drop("image_id")
    noise = np.random.default_rng(1).normal(0, 2.0, (len(logits), len(names)))
    return logits.assign(**{name: logits[name] + noise[:, column] for column, name in enumerate(names)})


def test_nothing_is_compared_without_a_previous_model(tables: Tables) -> None:
    studies, _, logits = tables
    assert comparison(studies, logits, None, CONFIG).empty


def test_a_worse_previous_model_is_beaten(tables: Tables) -> None:
    studies, _, logits = tables
    result = comparison(studies, logits, noisy(logits), CONFIG)
    own = compare(studies, {"previous": noisy(logits), "this model": logits}, "test", CONFIG)
    pd.testing.assert_frame_equal(result[own.columns], own)
    assert result["low"].iloc[0] > 0
    assert set(result["images"]) == {len(logits)}


def test_only_common_images_and_findings_count(tables: Tables) -> None:
    studies, _, logits = tables
    first, *rest = logits.columns.drop("image_id")
    kept = logits["image_id"][: len(logits) * 3 // 4]
    train = studies.loc[studies["split"] == "train", "image_id"][:5]
    other = noisy(logits)[["image_id", *reversed(rest)]].assign(Other=0.0)
    other = other[other["image_id"].isin(kept)]
    # An image that is for training now must not be scored, whatever the previous model knew of it.
    strangers = other.head(5).assign(image_id=[*train])
    result = comparison(studies, logits, pd.concat([other, strangers]), CONFIG)
    assert set(result["images"]) == {len(kept)}
    names = set(result.loc[result["level"] == "finding", "name"])
    assert names == set(rest)
    assert first not in names


@pytest.mark.parametrize("what", ["finding", "test image"])
def test_nothing_in_common_is_said_and_has_no_number(tables: Tables, what: str) -> None:
    studies, _, logits = tables
    other = (
        logits[["image_id"]].assign(Other=0.0)
        if what == "finding"
        else logits.assign(image_id=lambda t: "x" + t["image_id"])
    )
    result = comparison(studies, logits, other, CONFIG)
    assert result["note"].tolist() == [f"not comparable: no {what} in common"]
    assert result["difference"].isna().all()


def test_accepted_logits_are_read_back(tables: Tables, tmp_path: Path) -> None:
    _, _, logits = tables
    assert read_logits(tmp_path) is None
    with pytest.raises(UserError, match="Run train first"):
        accept_logits(tmp_path, tmp_path)
    (tmp_path / "models/logits").mkdir(parents=True)
    logits.to_parquet(tmp_path / "models/logits/test.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(accept_logits(tmp_path / "models", tmp_path)), logits)
    (tmp_path / "test_logits.parquet").write_text("no table")
    with pytest.raises(UserError, match="not a Parquet table"):
        read_logits(tmp_path)
