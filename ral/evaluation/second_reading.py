"""Label noise: agreement of a second reading with the labels, and the metrics against each reading."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from ral.config.evaluate import SecondReadingConfig
from ral.data.sources.parquet import is_parquet, read_parquet_chunks
from ral.data.sources.text import read_text
from ral.errors import UserError
from ral.evaluation.bootstrap import BootstrapDistribution, Resamples, Support
from ral.evaluation.exact import clopper_pearson
from ral.evaluation.metrics import Array, divide
from ral.evaluation.resampled_metrics import Scored, ranking, too_few
from ral.evaluation.rows import floats
from ral.evaluation.score import Evaluation
from ral.evaluation.specs import AGREEMENT_METRICS, READ_AGAINST
from ral.evaluation.table_rows import ReadingRow, to_frame, with_ends
from ral.evaluation.tables import rounded

# Valid cell values, as text.
VALUES = {"1": 1.0, "1.0": 1.0, "True": 1.0, "0": 0.0, "0.0": 0.0, "False": 0.0, "": np.nan}

TEXT = ("finding", "note")
COLUMNS = (
    "finding", "images", "patients", "first_positives", "second_positives", "both_positive",
    *with_ends(AGREEMENT_METRICS),
    *with_ends(f"{name}_{reading}" for name in READ_AGAINST for reading in ("first", "second")),
    "note",
)  # fmt: skip


def table(evaluation: Evaluation) -> pd.DataFrame:
    """second_reading.csv: see `agreement`; no rows if the parameters name no second reading."""
    config = evaluation.config.second_reading
    if config is None:
        return pd.DataFrame(columns=list(COLUMNS))
    return agreement(evaluation, read(config, list(evaluation.scored)))


def read(config: SecondReadingConfig, findings: list[str]) -> pd.DataFrame:
    """Read the second reading: image_id and a column per finding that was read, with 1, 0 or NaN.

    Raises:
        UserError: the file or a column is missing, a finding is unknown, an image is duplicated, a value is not 1, 0
            or empty.
    """
    path, where = Path(config.file), f"evaluate.second_reading: {config.file}"
    if not path.exists():
        raise UserError(f"{where} does not exist.")
    unknown = [name for name in config.columns if name not in findings]
    if unknown:
        raise UserError(
            f"evaluate.second_reading.columns: no finding {', '.join(unknown)}. Findings: {', '.join(findings)}."
        )
    columns = [config.image_id, *dict.fromkeys(config.columns.values())]
    raw = pd.concat(read_parquet_chunks(path, columns)) if is_parquet(path) else read_text(path, columns)
    duplicates = raw.loc[raw[config.image_id].duplicated(), config.image_id]
    if len(duplicates):
        raise UserError(
            f"{where}: {len(duplicates)} duplicate image(s), such as {duplicates.iloc[0]}. Keep one row per image."
        )
    reading = pd.DataFrame({"image_id": raw[config.image_id]})
    for name, column in config.columns.items():
        invalid = raw[~raw[column].isin(VALUES)]
        if len(invalid):
            row, image_id = invalid[["row", config.image_id]].iloc[0]
            raise UserError(
                f"{where}: {column} is not 1, 0 or empty for {len(invalid)} image(s), such as {image_id} in row {row}."
            )
        reading[name] = raw[column].map(VALUES).astype("float64")
    return reading


def agreement(evaluation: Evaluation, reading: pd.DataFrame) -> pd.DataFrame:
    """A row per finding that was read twice, over the test images with a known label in both readings.

    kappa is Cohen's (1960); positive_agreement is 2 × both positive / (positives of the first + of the second reading),
    the F1 of one reading against the other; negative_agreement likewise. The metrics are computed against the first
    reading (the labels) and the second, on the same images and resamples.

    Raises:
        UserError: no test image was read twice.
    """
    images = evaluation.rows["image_id"].astype(str)
    if not images.isin(reading["image_id"]).any():
        raise UserError(
            "evaluate.second_reading: it contains no test image. Check the column with the image ids."
        )
    second_labels = reading.set_index("image_id").reindex(images)
    rows = [_row(name, evaluation, floats(second_labels[name])) for name in reading.columns.drop("image_id")]
    counts = dict.fromkeys(COLUMNS[1:6], "Int64")
    return rounded(to_frame(rows, COLUMNS).astype(counts), text=TEXT)


def _row(name: str, evaluation: Evaluation, second: Array) -> ReadingRow:
    """The row of a finding.

    Args:
        name: the finding.
        evaluation: of the first reading.
        second: labels of the second reading, 1, 0 or NaN, of the test images.
    """
    first, logits = evaluation.scored[name].labels, evaluation.scored[name].logits
    both = ~np.isnan(first) & ~np.isnan(second)
    if not both.any():
        return ReadingRow(name, 0, note="no test image was read twice")
    inside = evaluation.resamples.rows(both)
    one, two = first[both], second[both]
    metrics = {metric: inside.interval(value) for metric, value in agreements(one, two, inside).items()}
    notes = []
    for label, labels in (("first", one), ("second", two)):
        scored = Scored(labels, logits[both], None, {})
        reason = too_few(scored, inside.patient, evaluation.config.min_positives)
        if reason:
            notes.append(f"{label} reading: {reason}")
            continue
        for metric, value in ranking(scored, inside, READ_AGAINST).items():
            metrics[f"{metric}_{label}"] = inside.interval(value)
    return ReadingRow(
        name,
        int(both.sum()),
        patients=inside.patients,
        first_positives=int(one.sum()),
        second_positives=int(two.sum()),
        both_positive=int((one * two).sum()),
        metrics=metrics,
        note="; ".join(notes),
    )


def agreements(one: Array, two: Array, resamples: Resamples) -> dict[str, BootstrapDistribution]:
    """The metrics `specs.AGREEMENT_METRICS` in every resample.

    The sample size of positive agreement and of kappa is that of the images that either reading calls positive. If the
    readings agree on none or all of these, replicates do not vary; the uncertainty of kappa is then computed from the
    exact interval of the share of agreement.
    """
    cells = [one * two, one * (1 - two), (1 - one) * two, (1 - one) * (1 - two)]
    counts = resamples.totals(np.stack(cells, axis=1)).T
    yes, first, second, no = counts
    either, neither = (
        Support.of(resamples.counts(np.maximum(a, b) == 1)) for a, b in ((one, two), (1 - one, 1 - two))
    )
    kappa = BootstrapDistribution(_kappa(*counts), either, "free")
    if either.images and (yes[0] == 0 or yes[0] == either.images):
        agreed = clopper_pearson(yes[0] / either.images, either.effective, resamples.confidence)
        low, high = (float(_kappa(*_agreeing(counts[:, 0], share))) for share in agreed)
        value = float(kappa.values[0])
        kappa = replace(kappa, unseen=(max(value - low, 0.0), max(high - value, 0.0)))
    return {
        "kappa": kappa,
        "positive_agreement": BootstrapDistribution(
            divide(2 * yes, 2 * yes + first + second, 2 * yes + first + second > 0), either, "f1"
        ),
        "negative_agreement": BootstrapDistribution(
            divide(2 * no, 2 * no + first + second, 2 * no + first + second > 0), neither, "f1"
        ),
    }


def _kappa(yes: Array, first: Array, second: Array, no: Array) -> Array:
    """Cohen's kappa from counts: both positive, only the first, only the second, neither; NaN if expected
    agreement is 1.
    """
    images = yes + first + second + no
    observed = divide(yes + no, images, images > 0)
    chance = divide((yes + first) * (yes + second) + (no + first) * (no + second), images**2, images > 0)
    return divide(observed - chance, 1 - chance, 1 - chance > 1e-12)


def _agreeing(counts: Array, share: float) -> Array:
    """The counts if both readings agreed on `share` of the images that either reading calls positive."""
    yes, first, second, no = counts
    either, disagreed = yes + first + second, first + second
    first_share = first / disagreed if disagreed else 0.5
    disagreeing = (1 - share) * either
    return np.array([share * either, disagreeing * first_share, disagreeing * (1 - first_share), no])
