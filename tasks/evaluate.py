"""Score the test logits: AP, AUROC and F1 per finding, macro and per tier, with intervals.

    python -m tasks.evaluate

Writes metrics.json (macro and tiers), findings.csv (a row per finding) and curves.csv (ROC and precision-recall).
"""

from pathlib import Path

from ral.config.base import load
from ral.config.evaluate import EvaluateParams
from tasks import step


def run(params: EvaluateParams, prepared: Path, logits: Path, out: Path) -> None:
    """Evaluate the logits in `logits` against the labels in `prepared` and write the figures into `out`.

    Raises:
        UserError: logits and labels do not belong together, or a logit is not finite.
    """
    import pandas as pd

    from ral.evaluation import score
    from ral.files import new_file, read_json, write_json

    findings = read_json(prepared / "dataset.json")["findings"]
    studies = pd.read_parquet(
        prepared / "studies.parquet", columns=["image_id", "patient_id", "split", *findings]
    )
    val, test = (pd.read_parquet(logits / f"{split}.parquet") for split in ("val", "test"))
    evaluation = score.evaluate(studies, val, test, params.evaluate)
    rows, scores = score.align(studies, test, "test")
    tables = {
        "findings.csv": score.to_table(evaluation),
        "curves.csv": score.curves(rows, scores, evaluation.estimable),
    }
    for name, table in tables.items():
        with new_file(out / name) as draft:
            table.assign(data=evaluation.data).to_csv(draft, index=False, lineterminator="\n")
    write_json(out / "metrics.json", score.to_metrics(evaluation))


if __name__ == "__main__":
    options = step.parse(
        __doc__,
        {
            "prepared": ("data/prepared", "what the step preprocess wrote"),
            "logits": ("models/logits", "logits that the step train wrote"),
            "out": ("reports", "folder to write"),
        },
    )
    step.main(
        "evaluate",
        lambda: run(load(options.params, EvaluateParams), options.prepared, options.logits, options.out),
    )
