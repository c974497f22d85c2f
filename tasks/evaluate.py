"""Score the test logits: metrics with intervals, calibration, thresholds, audit.

    python -m tasks.evaluate

Writes metrics.json (macro, micro, tiers, the figures of CXR-LT), findings.csv (a row per finding), curves.csv (ROC
and precision-recall), calibration.json (maps and thresholds, fitted on validation), operating.csv (what each threshold
gives on test), reliability.csv (reliability curves), audit.csv (groups of images beside the others), second_reading.csv
(agreement with a second reading, where evaluate.second_reading names one) and comparison.csv (differences to the model
whose test logits baseline/ holds, if it does). docs/evaluation.md says how each figure is computed.
"""

from pathlib import Path

from ral.config.base import load
from ral.config.evaluate import EvaluateParams
from tasks import step


def run(params: EvaluateParams, prepared: Path, logits: Path, baseline: Path, out: Path) -> None:
    """Evaluate the logits in `logits` against the labels in `prepared` and write the figures into `out`.

    Raises:
        UserError: logits and labels do not belong together, or a logit is not finite.
    """
    import pandas as pd
    from threadpoolctl import threadpool_limits

    from ral.data.baseline import read_logits
    from ral.data.splits import holdout
    from ral.evaluation import audit, baseline_comparison, calibration_io, rows, score, second_reading, tables
    from ral.files import atomic_write, write_json

    whole = rows.read_studies(prepared)
    val, test = (pd.read_parquet(logits / f"{split}.parquet") for split in ("val", "test"))
    studies, test = holdout.unsealed(whole, params.evaluate.sealed, test)
    # Some linear algebra gives other last digits on more threads.
    with threadpool_limits(1):
        evaluation = score.evaluate(studies, val, test, params.evaluate)
        written = {
            "findings.csv": tables.to_table(evaluation),
            "curves.csv": tables.curves(evaluation),
            "operating.csv": tables.operating(evaluation),
            "reliability.csv": tables.reliability(evaluation),
            "audit.csv": audit.audit(evaluation),
            "second_reading.csv": second_reading.table(evaluation),
            "comparison.csv": baseline_comparison.comparison(
                studies, test, read_logits(baseline), params.evaluate
            ),
        }
    for name, table in written.items():
        with atomic_write(out / name) as draft:
            table.assign(data=evaluation.data).to_csv(draft, index=False, lineterminator="\n")
    write_json(out / "calibration.json", calibration_io.to_json(evaluation))
    write_json(
        out / "metrics.json",
        tables.to_metrics(evaluation, holdout.sealed_patients(whole, params.evaluate.sealed)),
    )


if __name__ == "__main__":
    options = step.parse(
        __doc__,
        {
            "prepared": ("data/prepared", "what the step preprocess wrote"),
            "logits": ("models/logits", "logits that the step train wrote"),
            "baseline": ("baseline", "folder that may have the accepted model's test_logits.parquet"),
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
