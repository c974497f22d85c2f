"""Score the test logits: metrics with intervals, calibration, thresholds, audit.

    python -m tasks.evaluate

Writes summary.json (macro and tiers, for `dvc metrics show`), metrics.json (means with intervals, for programs),
findings.csv (a row per finding), curves.csv (ROC and precision-recall), calibration.json (maps and thresholds,
fitted on validation), operating.csv (test metrics at each threshold), reliability.csv (reliability curves),
decision_curves.csv (net benefit), characteristics.csv (sex, age, view and findings of each split), audit.csv
(groups of images compared with all others), second_reading.csv (agreement with a second reading, if
evaluate.second_reading names one) and comparison.csv (differences to the model whose test logits are in
baseline/, if any). docs/evaluation.md defines the metrics.
"""

from pathlib import Path

from ral import artifacts
from ral.config.evaluate import EvaluateParams
from tasks import step


def run(params: EvaluateParams, prepared: Path, logits: Path, baseline: Path, out: Path) -> None:
    """Evaluate the logits in `logits` against the labels in `prepared` and write the results into `out`.

    Raises:
        UserError: logits and labels do not match, or a logit is not finite.
    """
    import pandas as pd
    from threadpoolctl import threadpool_limits

    from ral.data.baseline import read_logits
    from ral.data.splits import holdout
    from ral.evaluation import (
        audit,
        baseline_comparison,
        characteristics,
        rows,
        score,
        second_reading,
        tables,
    )
    from ral.files import atomic_write, write_json

    all_studies = rows.read_studies(prepared)
    val, test = (pd.read_parquet(logits / artifacts.logits(split).name) for split in ("val", "test"))
    studies, test = holdout.unsealed(all_studies, params.evaluate.sealed, test)
    # The last digits of some linear algebra depend on the number of threads.
    with threadpool_limits(1):
        evaluation = score.evaluate(studies, val, test, params.evaluate)
        csv_tables = {
            artifacts.FINDINGS: tables.to_table(evaluation),
            artifacts.CURVES: tables.curves(evaluation),
            artifacts.OPERATING: tables.operating(evaluation),
            artifacts.RELIABILITY: tables.reliability(evaluation),
            artifacts.DECISION_CURVES: tables.decision_curves(evaluation),
            artifacts.CHARACTERISTICS: characteristics.characteristics(studies),
            artifacts.AUDIT: audit.audit(evaluation),
            artifacts.SECOND_READING: second_reading.table(evaluation),
            artifacts.COMPARISON: baseline_comparison.comparison(
                studies, test, read_logits(baseline), params.evaluate
            ),
        }
    for path, table in csv_tables.items():
        with atomic_write(out / path.name) as draft:
            table.assign(data=evaluation.data).to_csv(draft, index=False, lineterminator="\n")
    tables.to_calibration(evaluation).write(out / artifacts.CALIBRATION.name)
    write_json(out / artifacts.SUMMARY.name, tables.to_summary(evaluation))
    sealed = holdout.sealed_patients(all_studies, params.evaluate.sealed)
    tables.to_metrics(evaluation, sealed).write(out / artifacts.METRICS.name)


if __name__ == "__main__":
    step.command(
        "evaluate", __doc__, run, EvaluateParams,
        {
            "prepared": (artifacts.PREPARED, "output folder of the step preprocess"),
            "logits": (artifacts.LOGITS, "logits written by the step train"),
            "baseline": (artifacts.BASELINE, "folder with test_logits.parquet of the accepted model, if any"),
            "out": (artifacts.REPORTS, "folder to write"),
        },
    )  # fmt: skip
