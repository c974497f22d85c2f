"""The rows of the tables: what is read from a CSV file is what was written."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from ral.config.base import load
from ral.config.evaluate import EvaluateParams
from ral.errors import UserError
from ral.evaluation import tables as written
from ral.evaluation.audit import audit
from ral.evaluation.characteristics import characteristics
from ral.evaluation.compare import compare
from ral.evaluation.results import NO_INTERVAL, Mean, Metrics
from ral.evaluation.score import Evaluation, evaluate
from ral.evaluation.second_reading import agreement
from ral.evaluation.specs import FINDING_METRICS, THRESHOLD_METRICS
from ral.evaluation.table_rows import (
    AuditRow,
    CharacteristicsRow,
    ComparisonRow,
    FindingRow,
    OperatingRow,
    ReadingRow,
    columns_of,
    read_rows,
    to_frame,
)

ROOT = Path(__file__).parents[2]
CONFIG = load(ROOT / "params.yaml", EvaluateParams).evaluate.model_copy(update={"replicates": 100})

Tables = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]


@pytest.fixture
def evaluation(tables: Tables) -> Evaluation:
    number = np.arange(len(tables[0]))
    studies = tables[0].assign(
        sex=np.where(number % 2, "F", "M"), age_years=(number % 80).astype(float), view="PA"
    )
    return evaluate(studies, *tables[1:], CONFIG)


def reread(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The table as the step report reads it."""
    table.to_csv(path, index=False)
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


def test_rows_are_those_of_the_file(tables: Tables, evaluation: Evaluation, tmp_path: Path) -> None:
    reading = evaluation.rows[["image_id", "Mass", "Hernia"]]
    nothing_read = reading.assign(Hernia=np.nan)
    models = {"a": tables[2], "b": tables[2]}
    for kind, table in {
        FindingRow: written.to_table(evaluation),
        OperatingRow: written.operating(evaluation),
        AuditRow: audit(evaluation),
        ComparisonRow: compare(tables[0], models, "test", CONFIG),
        ReadingRow: agreement(evaluation, nothing_read),
        CharacteristicsRow: characteristics(evaluation.rows),
    }.items():
        rows = read_rows(reread(table, tmp_path / "table.csv"), kind)
        assert len(rows) == len(table) > 0
        again = to_frame(rows)[list(table.columns)]
        assert reread(again, tmp_path / "again.csv").equals(reread(table, tmp_path / "table.csv")), kind


def test_values_have_their_types(evaluation: Evaluation, tmp_path: Path) -> None:
    rows = read_rows(reread(written.to_table(evaluation), tmp_path / "table.csv"), FindingRow)
    effusion, edema = rows[0], rows[1]
    assert (effusion.finding, effusion.not_estimable) == ("Effusion", "")
    assert list(effusion.metrics) == list(FINDING_METRICS)
    assert effusion.value("ap") == round(evaluation.findings[0].scores["ap"].value or 0, 6)
    assert effusion.test_prevalence == effusion.test_positives / effusion.test_rows
    assert set(edema.metrics.values()) == {NO_INTERVAL}
    assert "0 patients with positive" in edema.not_estimable
    points = read_rows(reread(written.operating(evaluation), tmp_path / "table.csv"), OperatingRow)
    assert list(points[0].metrics) == list(THRESHOLD_METRICS)
    assert [point.chosen for point in points[:3]] == [True, False, False]
    gaps = read_rows(reread(audit(evaluation), tmp_path / "table.csv"), AuditRow)
    assert gaps[0] == AuditRow("source", note="not in the data")
    assert {gap.attributes for gap in gaps} == {("source",), ("sex",), ("age",), ("view",), ("sex", "age")}


def test_a_column_that_is_missing_is_named(evaluation: Evaluation) -> None:
    with pytest.raises(ValidationError, match="tier"):
        read_rows(written.to_table(evaluation).drop(columns="tier"), FindingRow)


def test_a_row_has_a_cell_for_every_column() -> None:
    row = AuditRow("sex", "F", images=3)
    assert list(columns_of(row)) == [column.name for column in fields(AuditRow)]
    assert columns_of(replace(row, p=0.5))["p"] == 0.5


def test_metrics_are_read_as_written(evaluation: Evaluation, tmp_path: Path) -> None:
    metrics = written.to_metrics(evaluation, sealed=3)
    metrics.write(tmp_path / "metrics.json")
    read = Metrics.read(tmp_path / "metrics.json")
    assert read == metrics
    assert (read.test.sealed_patients, read.macro["ap"].findings, read.percent) == (3, 3, "95 %")
    with pytest.raises(KeyError):
        read.macro["dice"]
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(UserError, match=r"metrics\.json: data: Field required"):
        Metrics.read(tmp_path / "metrics.json")
    with pytest.raises(ValidationError, match="high"):
        Mean.model_validate({"findings": 1, "ap": {"value": 0.5, "low": 0.1, "findings": 1}})
