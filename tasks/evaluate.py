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

from ral.config.base import load
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
    val, test = (pd.read_parquet(logits / f"{split}.parquet") for split in ("val", "test"))
    studies, test = holdout.unsealed(all_studies, params.evaluate.sealed, test)
    # The last digits of some linear algebra depend on the number of threads.
    with threadpool_limits(1):
        evaluation = score.evaluate(studies, val, test, params.evaluate)
        csv_tables = {
            "findings.csv": tables.to_table(evaluation),
            "curves.csv": tables.curves(evaluation),
            "operating.csv": tables.operating(evaluation),
            "reliability.csv": tables.reliability(evaluation),
            "decision_curves.csv": tables.decision_curves(evaluation),
            "characteristics.csv": characteristics.characteristics(studies),
            "audit.csv": audit.audit(evaluation),
            "second_reading.csv": second_reading.table(evaluation),
            "comparison.csv": baseline_comparison.comparison(
                studies, test, read_logits(baseline), params.evaluate
            ),
        }
    for name, table in csv_tables.items():
        with atomic_write(out / name) as draft:
            table.assign(data=evaluation.data).to_csv(draft, index=False, lineterminator="\n")
    tables.to_calibration(evaluation).write(out / "calibration.json")
    write_json(out / "summary.json", tables.to_summary(evaluation))
    sealed = holdout.sealed_patients(all_studies, params.evaluate.sealed)
    tables.to_metrics(evaluation, sealed).write(out / "metrics.json")


if __name__ == "__main__":
    options = step.parse(
        __doc__,
        {
            "prepared": ("data/prepared", "output folder of the step preprocess"),
            "logits": ("models/logits", "logits written by the step train"),
            "baseline": ("baseline", "folder with test_logits.parquet of the accepted model, if any"),
            "out": ("reports", "folder to write"),
        },
    )
    step.main(
        "evaluate",
        lambda: run(
            load(options.params, EvaluateParams),
            options.prepared,
            options.logits,
            options.baseline,
            options.out,
        ),
    )
