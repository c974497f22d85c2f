"""Evaluates a model on labelled images: scores them, measures, and writes the outputs. Nothing is fitted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from ral.errors import UserError
from ral.evaluation import audit, characteristics, score, tables
from ral.evaluation.external import DataUsed, ExternalValidation, FindingsUsed, ModelUsed, Patients
from ral.evaluation.rows import align
from ral.external.labelled import LabelledImages
from ral.files import atomic_directory, read_json, write_json
from ral.inference.predict import UNLIKE_SHARE
from ral.inference.records import ModelRecord
from ral.inference.results import to_table
from ral.inference.scoring import Predicted, Predictor
from ral.progress import Progress
from ral.wording import pluralize

METRICS = "metrics.json"
# Key of metrics.json that says what was evaluated on what.
KEY = "external_validation"


@dataclass(frozen=True)
class Scores:
    """Results of the images that could be scored."""

    image_ids: list[str]
    parts: list[Predicted]
    """Passes without the bad images."""
    bad: pd.DataFrame
    """image_id and reason of the images that could not."""
    warnings: Mapping[str, int]
    """How images differ from the training images -> number of images."""

    def logits(self, findings: Sequence[str], chosen: Sequence[str]) -> pd.DataFrame:
        """image_id and the raw logits of the chosen findings, one row per image."""
        values = np.concatenate([part.logits for part in self.parts])
        table = pd.DataFrame(values, columns=list(findings))[list(chosen)]
        table.insert(0, "image_id", self.image_ids)
        return table


def score_images(data: LabelledImages, predictor: Predictor) -> Scores:
    """Decode and score images as `ral predict` does.

    Raises:
        UserError: no image could be scored; see `Predictor.stream`.
    """
    parts, bad, warnings = [], [], Counter[str]()
    ids: list[str] = []
    with Progress("scoring", len(data.rows), "images") as progress:
        for predicted in predictor.stream(data.images()):
            good = [index for index, error in enumerate(predicted.errors) if not error]
            bad += [
                (name, error) for name, error in zip(predicted.names, predicted.errors, strict=True) if error
            ]
            for text in filter(None, predicted.warnings):
                warnings.update(text.split("; "))
            if good:
                parts.append(_select(predicted, good))
                ids += parts[-1].names
            progress.add(len(predicted.names))
    faults = pd.DataFrame(bad, columns=["image_id", "reason"], dtype="str")
    if not ids:
        raise UserError(
            f"None of the {len(data.rows):,} images can be used. The first: {bad[0][0]}: {bad[0][1]}."
        )
    return Scores(ids, parts, faults, dict(sorted(warnings.items())))


def evaluate(
    data: LabelledImages, logits: pd.DataFrame, record: ModelRecord, phantom_model: bool
) -> score.Evaluation:
    """Metrics of the findings that both the data and the model have.

    Args:
        data: the labels; images without logits are not counted.
        logits: image_id and a column per common finding, in the order of the model.
        record: of the model.
        phantom_model: whether the model was trained on phantom images.

    Raises:
        UserError: a label is not 1, 0 or empty; fewer than two patients.
    """
    common = list(logits.columns[1:])
    others = [name for name in data.findings if name not in common]
    rows = data.rows[data.rows["image_id"].isin(logits["image_id"])].drop(columns=others)
    order = [name for name in rows.columns if name not in common]
    test, scores = align(rows[[*order, *common]], logits, "test", data.name)
    fitted = [finding for finding in record.findings if finding.name in common]
    phantom = phantom_model or score.data_of(test) == "phantom"
    return score.measure(test, scores, fitted, record.config, "phantom" if phantom else "images")


def common_findings(model: Sequence[str], data: LabelledImages) -> list[str]:
    """The findings that both have, in the order of the model.

    Raises:
        UserError: there is none; the message names both lists.
    """
    common = [name for name in model if name in data.findings]
    if not common:
        raise UserError(
            f"The model and {data.name} have no finding in common. The model has {', '.join(model)}; the data has "
            f"{', '.join(data.findings)}. Findings are matched by name."
        )
    return common


def known_patients(data: LabelledImages, record: ModelRecord) -> Patients | None:
    """Patients whose id is also in the data of the model, by split; None if that is not known."""
    if record.split is None or not data.patients_known:
        return None
    splits = record.split.reindex(data.rows["patient_id"].unique())
    return Patients(**{name: int((splits == name).sum()) for name in ("train", "val", "test")})


def describe(
    data: LabelledImages, scores: Scores, record: ModelRecord, predictor: Predictor, split: str | None
) -> ExternalValidation:
    """What was evaluated on what: the part of metrics.json beside the metrics."""
    model = predictor.models[0]
    excluded = pd.concat([data.excluded, scores.bad], ignore_index=True)
    # Details in brackets differ between images.
    reasons = Counter(reason.partition(" (")[0] for reason in excluded["reason"])
    common = common_findings(model.findings, data)
    return ExternalValidation(
        model=ModelUsed(
            name=model.name,
            source=record.source,
            phantom=model.phantom,
            calibration=model.calibration.version,
            threshold_rule=model.calibration.rule,
        ),
        data=DataUsed(
            name=data.name,
            source=data.source,
            split=split,
            images=len(scores.image_ids),
            phantom=score.data_of(data.rows) == "phantom",
            patients_known=data.patients_known,
            excluded=dict(sorted(reasons.items())),
            notes=list(data.notes),
        ),
        findings=FindingsUsed(
            evaluated=common,
            not_labelled=[name for name in model.findings if name not in common],
            not_in_model=[name for name in data.findings if name not in common],
        ),
        patients_of_model=known_patients(data, record),
        unlike_training_images=dict(scores.warnings),
    )


def messages(described: ExternalValidation) -> list[str]:
    """What a person must know about an evaluation, a sentence each."""
    data, findings = described.data, described.findings
    lines = []
    if not data.patients_known:
        lines.append(
            "The patients are not known: intervals resample images, and are too narrow where a patient has several."
        )
    if described.patients_of_model is None:
        lines.append("It is not known whether patients are also in the data of the model.")
    of_model = described.patients_of_model or Patients(train=0, val=0, test=0)
    if of_model.train + of_model.val:
        patients = pluralize(of_model.train + of_model.val, "patient id is", "patient ids are")
        lines.append(
            f"{patients} also in the training or validation data of the model ({described.model.source}). If these "
            "are the same patients, the results are too good: leave them out."
        )
    if of_model.test:
        patients = pluralize(of_model.test, "patient id is", "patient ids are")
        lines.append(
            f"{patients} also in the test data of the model. If these are the same patients, this is no external "
            "validation."
        )
    if findings.not_labelled:
        lines.append(f"Not labelled in the data, not counted: {', '.join(findings.not_labelled)}.")
    if findings.not_in_model:
        lines.append(f"Not in the model, not counted: {', '.join(findings.not_in_model)}.")
    for reason, count in data.excluded.items():
        lines.append(
            f"{pluralize(count, 'row is', 'rows are')} not evaluated: {reason} (listed in excluded.csv)."
        )
    for warning, count in described.unlike_training_images.items():
        if count > UNLIKE_SHARE * data.images:
            lines.append(f"{pluralize(count, 'image', 'images')}: {warning}. The model may not work on them.")
    return [*lines, *data.notes]


def tables_of(evaluation: score.Evaluation) -> dict[str, pd.DataFrame]:
    """The tables of the step evaluate that need no training data, by file name, and calibration.csv."""
    described = characteristics.characteristics(evaluation.rows)
    return {
        "findings.csv": tables.to_table(evaluation),
        "curves.csv": tables.curves(evaluation),
        "operating.csv": tables.operating(evaluation),
        "reliability.csv": tables.reliability(evaluation),
        "decision_curves.csv": tables.decision_curves(evaluation),
        "characteristics.csv": described[described["split"] == "test"],
        "audit.csv": audit.audit(evaluation),
        "calibration.csv": calibration_gaps(evaluation),
    }


GAPS = ("finding", "images", "mean_probability", "observed", "difference", "low", "high")


def calibration_gaps(evaluation: score.Evaluation) -> pd.DataFrame:
    """calibration.csv: mean probability and share of positives of each estimable finding, and their difference.

    Columns `GAPS`; low and high are the interval of the difference.
    """
    rows = []
    for name in evaluation.estimable:
        scored = evaluation.scored[name]
        if scored.scores is None or not scored.thresholds:
            continue
        rule = evaluation.config.threshold.rule
        gap = audit.group_metrics(scored, evaluation.resamples, rule)["calibration"]
        difference = score.estimate(gap, evaluation.resamples)
        known = scored.known()
        values = (
            scored.scores[known].mean(), scored.labels[known].mean(),
            difference.value, difference.low, difference.high,
        )  # fmt: skip
        rows.append((name, int(known.sum()), *values))
    return tables.rounded(pd.DataFrame(rows, columns=list(GAPS)), text=("finding",))


def predictions(scores: Scores, predictor: Predictor, data: LabelledImages) -> pa.Table:
    """The columns of `ral predict`, and FINDING_label of the findings that are labelled."""
    table = to_table(scores.parts, predictor.labels()).drop_columns(["error"])
    labels = data.rows.set_index("image_id").loc[scores.image_ids]
    for name in common_findings(predictor.findings, data):
        values: NDArray[np.float64] = labels[name].to_numpy(np.float64, na_value=np.nan)
        column = pa.array(np.nan_to_num(values).astype(np.int8), pa.int8(), mask=np.isnan(values))
        position = table.column_names.index(f"{name}_probability")
        table = table.add_column(position, f"{name}_label", column)
    return table


def write(
    out: Path,
    evaluation: score.Evaluation,
    described: ExternalValidation,
    predicted: pa.Table,
    excluded: pd.DataFrame,
) -> None:
    """Write all outputs but those of other folders; see docs/external_validation.md.

    Args:
        out: folder; those of an earlier evaluation are replaced.
        evaluation: of `evaluate`.
        described: of `describe`.
        predicted: of `predictions`.
        excluded: image_id and reason of the rows that are not evaluated.
    """
    from ral.reporting.external import render

    metrics = tables.to_metrics(evaluation)
    by_name = tables_of(evaluation)
    with atomic_directory(out) as draft:
        for name, table in by_name.items():
            table.assign(data=evaluation.data).to_csv(draft / name, index=False, lineterminator="\n")
        excluded.to_csv(draft / "excluded.csv", index=False, lineterminator="\n")
        options = pa.csv.WriteOptions(quoting_style="needed")
        pa.csv.write_csv(predicted, draft / "predictions.csv", options)
        write_json(draft / METRICS, {**metrics.to_json(), KEY: described.to_json()})
        page = render(metrics, described, by_name, evaluation.config, messages(described))
        (draft / "report.html").write_text(page, encoding="utf-8", newline="\n")


def check_out(out: Path) -> None:
    """Refuse a folder whose files the outputs could replace, such as reports/ of a project.

    Raises:
        UserError: it is not empty and not of an earlier evaluation.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    path = out / METRICS
    try:
        if path.is_file() and KEY in read_json(path):
            return
    except ValueError:
        pass
    raise UserError(f"{out} exists and has other files. Choose a new folder for -o.")


def _select(predicted: Predicted, rows: list[int]) -> Predicted:
    def texts(values: list[str]) -> list[str]:
        return [values[row] for row in rows]

    return Predicted(
        texts(predicted.names), texts(predicted.errors), texts(predicted.warnings), texts(predicted.views),
        predicted.probabilities[rows], predicted.logits[rows],
    )  # fmt: skip
