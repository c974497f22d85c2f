"""Summary of how well heat maps point at boxes: means over images and findings, with intervals over patients."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pandas as pd
from pydantic import TypeAdapter

from ral.config.evaluate import EvaluateConfig
from ral.evaluation.bootstrap import BootstrapDistribution, Resamples, Scale, Support, draw
from ral.evaluation.metrics import Array, divide
from ral.evaluation.results import NO_INTERVAL, rounded_number
from ral.evaluation.table_rows import Number, Text

MACRO = "macro"
# Column -> its name for people.
LABELS = {
    "pointing": "Pointing game",
    "energy": "Energy in the box",
    "iobb_10": "IoBB ≥ 0.1",
    "iobb_25": "IoBB ≥ 0.25",
}
METHODS = {
    "grad_cam": "Grad-CAM",
    "rollout": "Attention rollout",
    "csra": "CSRA",
    "ml_decoder": "ML-Decoder attention",
    "centre": "Baseline: centre",
    "random": "Baseline: random point",
}
BASELINES = ("centre", "random")
# Metrics that are 0 or 1 on an image; the means over random points are not.
SHARES = ("pointing", "iobb_10", "iobb_25")
KEYS = ["method", "layer", "positions"]


@dataclass(frozen=True)
class LocalisationRow:
    """A row of localisation.csv: one metric of a method for a finding, or the mean over the findings."""

    split: Text
    method: Text
    layer: Text
    """Of Grad-CAM; empty: the last feature map."""
    positions: Text
    """Rows and columns of the heat maps; empty for a baseline."""
    shown: Text
    """yes for the heat maps of the gallery, and no."""
    finding: Text
    metric: Text
    images: int
    """Images with a box of the finding; macro: of any."""
    patients: int
    value: Number
    low: Number
    high: Number
    difference: Number
    """To the heat maps of the gallery, on the same resamples of the patients."""
    difference_low: Number
    difference_high: Number

    @property
    def name(self) -> str:
        """The method, its layer and its positions."""
        layer = f", {self.layer}" if self.layer else ""
        positions = f" ({self.positions})" if self.positions else ""
        return f"{METHODS[self.method]}{layer}{positions}"


COLUMNS = tuple(LocalisationRow.__dataclass_fields__)


def summarise(
    values: pd.DataFrame, split: str, shown: tuple[str, str] | None, config: EvaluateConfig
) -> list[LocalisationRow]:
    """The means of every method, per finding and over the findings, with intervals.

    Args:
        values: a row per image, finding and method (`ral.explain.localisation.localisation`).
        split: of the images.
        shown: method and layer ("" for the last feature map) of the gallery's heat maps; None if it has none.
        config: replicates, confidence, type of interval and seed.

    Returns:
        No rows if fewer than two patients have boxes, because there would be no interval.
    """
    if values.empty or values["patient_id"].nunique() < 2:
        return []
    tables = {
        (str(method), str(layer), str(positions)): part.reset_index(drop=True)
        for (method, layer, positions), part in values.groupby(KEYS, sort=False)
    }
    first = next(iter(tables.values()))
    patients = first["patient_id"].to_numpy(dtype=str)
    resamples = draw(patients, config.replicates, config.seed, config.confidence, config.interval)
    sampled = {key: _sample(table, first, resamples) for key, table in tables.items()}
    reference = next((key for key in tables if key[:2] == shown), None)
    rows = []
    for (method, layer, positions), own in sampled.items():
        is_shown = (method, layer, positions) == reference
        for (finding, metric), values_of in own.items():
            part = first if finding == MACRO else first[first["finding"] == finding]
            interval, difference = resamples.interval(values_of), NO_INTERVAL
            if reference is not None and not is_shown:
                difference = resamples.interval(
                    resamples.difference(values_of, sampled[reference][finding, metric])
                )
            rows.append(
                LocalisationRow(
                    split=split,
                    method=method,
                    layer=layer,
                    positions=positions,
                    shown="yes" if is_shown else "no",
                    finding=finding,
                    metric=metric,
                    images=part["image_id"].nunique(),
                    patients=part["patient_id"].nunique(),
                    value=rounded_number(interval.value),
                    low=rounded_number(interval.low),
                    high=rounded_number(interval.high),
                    difference=rounded_number(difference.value),
                    difference_low=rounded_number(difference.low),
                    difference_high=rounded_number(difference.high),
                )
            )
    return rows


def _sample(
    table: pd.DataFrame, first: pd.DataFrame, resamples: Resamples
) -> dict[tuple[str, str], BootstrapDistribution]:
    """Finding (or macro) and metric -> mean over the images, in every resample, of one method."""
    if not table[["finding", "image_id"]].equals(first[["finding", "image_id"]]):
        raise ValueError("the methods were measured on different images")
    exact = table["method"].iloc[0] != "random"
    findings = list(dict.fromkeys(table["finding"]))
    result = {}
    for metric in LABELS:
        parts = []
        for finding in findings:
            rows = (table["finding"] == finding).to_numpy()
            own = resamples.rows(rows)
            scale: Scale = "share" if exact and metric in SHARES else "rank"
            values = _mean(own, table.loc[rows, metric].to_numpy())
            support = Support.of(resamples.counts(rows))
            parts.append(BootstrapDistribution(values, support, scale))
            result[finding, metric] = parts[-1]
        result[MACRO, metric] = resamples.mean(parts)
    return result


def _mean(resamples: Resamples, values: Array) -> Array:
    """Mean of the values [images] in every resample; NaN where no image was drawn."""
    totals = resamples.totals(pd.DataFrame({"sum": values, "count": 1.0}).to_numpy())
    return divide(totals[:, 0], totals[:, 1], totals[:, 1] > 0)


def to_table(rows: Sequence[LocalisationRow]) -> pd.DataFrame:
    """localisation.csv."""
    return pd.DataFrame([asdict(row) for row in rows], columns=list(COLUMNS))


def read_table(table: pd.DataFrame) -> list[LocalisationRow]:
    """The rows of localisation.csv.

    Raises:
        pydantic.ValidationError: a column is missing, or a cell has the wrong type.
    """
    return TypeAdapter(list[LocalisationRow]).validate_python(table.to_dict("records"))
