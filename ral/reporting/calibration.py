"""The calibration and thresholds sections of the report: reliability curves, test metrics at each threshold, decision
curves."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from ral.config.evaluate import ThresholdConfig
from ral.evaluation.specs import CALIBRATION_METRICS, LABELS, THRESHOLD_METRICS
from ral.evaluation.table_rows import FindingRow, OperatingRow
from ral.reporting.plots import INK, TIER_COLOURS, plain, svg
from ral.reporting.tables import Table
from ral.wording import known, number, with_interval

# Kind of scores in reliability.csv -> name in the report.
SCORES = {"uncalibrated": "before", "calibrated": "after"}
NO_MAP = "none"
# Every how many points of a decision curve the table has a row.
STEP = 6


def maps(rows: Sequence[FindingRow]) -> Table:
    """The calibration map of every finding, and the calibration metrics before and after."""
    return Table(
        "Calibration of every finding on the test images",
        (
            "Finding",
            "Map",
            *(f"{LABELS[error]} {when}" for error in CALIBRATION_METRICS for when in ("before", "after")),
        ),
        "ll" + "r" * 2 * len(CALIBRATION_METRICS),
        [
            [
                row.finding,
                row.calibration or NO_MAP,
                *(
                    cell
                    for error in CALIBRATION_METRICS
                    for cell in (number(row.uncalibrated[error]), _error(row, error))
                ),
            ]
            for row in rows
        ],
    )


def reliability(name: str, row: FindingRow, bins: pd.DataFrame, phantom: bool) -> str:
    """Reliability curves of one finding, before and after calibration.

    Args:
        name: prefix of the ids, unique within a page.
        row: the finding's row of findings.csv.
        bins: the finding's rows of reliability.csv.
        phantom: whether to draw the watermark.
    """
    ends = bins[["mean_score", "observed", "high"]].to_numpy(dtype=float)
    top = min(1.0, max([0.05, *(1.05 * end for end in ends.flat if known(end))]))

    def paint(figure: Figure) -> None:
        for axes, (scores, title) in zip(figure.subplots(1, 2, sharey=True), SCORES.items(), strict=True):
            part = bins[bins["scores"] == scores]
            x, y, low, high = (
                part[column].to_numpy(dtype=float) for column in ("mean_score", "observed", "low", "high")
            )
            axes.plot([0, top], [0, top], color=INK, alpha=0.5, linewidth=0.9, linestyle=(0, (4, 3)))
            axes.vlines(x, low, high, color=TIER_COLOURS[row.tier], linewidth=1, alpha=0.6)
            axes.plot(
                x,
                y,
                color=TIER_COLOURS[row.tier],
                linewidth=1.3,
                marker="o",
                markersize=3.5,
                clip_on=False,
            )
            axes.set(title=title, xlabel="mean score", xlim=(-0.03 * top, top), ylim=(-0.03 * top, top))
            axes.locator_params(nbins=4)
            axes.grid(True)
        figure.axes[0].set_ylabel("share positive")

    alt = (
        f"{plain(row.finding)}: share of positive test images against the mean score of each bin, before "
        "calibration "
        f"(ECE {number(row.uncalibrated['ece'])}) and after (ECE {number(row.value('ece'))}). Dashed: perfect "
        "calibration. The numbers are in the table of bins below the plots."
    )
    return svg(name, alt, phantom, (4.4, 2.4), paint)


def bins(reliability: pd.DataFrame, rows: Sequence[FindingRow]) -> Table:
    """The points of the reliability curves."""
    content = []
    for row in rows:
        part = reliability[reliability["finding"] == row.finding]
        for scores, title in SCORES.items():
            for point in part[part["scores"] == scores].to_dict("records"):
                content.append(
                    [
                        row.finding,
                        title,
                        f"{int(point['images']):,}",
                        f"{int(point['positives']):,}",
                        number(point["mean_score"]),
                        with_interval(point["observed"], point["low"], point["high"]),
                    ]
                )
    return Table(
        "Bins of the reliability curves",
        ("Finding", "Calibration", "Images", "Positive", "Mean score", "Share positive"),
        "llrrrr",
        content,
    )


def rules(config: ThresholdConfig) -> dict[str, str]:
    """Description of each threshold rule."""
    return {
        "max_f1": "the highest F1",
        "sensitivity": f"the highest threshold with a sensitivity of at least {100 * config.sensitivity:g} %",
        "cost": f"the lowest cost, with a miss costing as much as {config.miss_cost:g} false alarms",
        "prevalence": "the prevalence of the finding on validation",
    }


def operating(points: Sequence[OperatingRow], rows: Sequence[FindingRow], rule: str, caption: str) -> Table:
    """Test metrics at the thresholds of a rule."""
    by_finding = {point.finding: point for point in points if point.rule == rule}
    return Table(
        caption,
        (
            "Finding", "Threshold (rounded)", "True positives", "False positives", "False negatives", "True negatives",
            *(LABELS[metric] for metric in THRESHOLD_METRICS),
        ),
        "l" + "r" * (5 + len(THRESHOLD_METRICS)),
        [
            [
                row.finding,
                _threshold(point.threshold),
                *(f"{count:,}" for count in (point.tp, point.fp, point.fn, point.tn)),
                *(point.metrics[metric].text() for metric in THRESHOLD_METRICS),
            ]
            for row in rows
            if (point := by_finding.get(row.finding))
        ],
    )  # fmt: skip


def decision_curve(name: str, row: FindingRow, points: pd.DataFrame, phantom: bool) -> str:
    """Decision curve of one finding: net benefit of the score, of calling all images positive and of calling none.

    Args:
        name: prefix of the ids, unique within a page.
        row: the finding's row of findings.csv.
        points: the finding's rows of decision_curves.csv.
        phantom: whether to draw the watermark.
    """
    x, y, low, high, everything = (
        points[column].to_numpy(dtype=float) for column in ("threshold", "net_benefit", "low", "high", "all")
    )
    top = max([1e-6, *(end for end in (*y, *high, everything[0]) if known(end))])
    bottom = min([0.0, *(end for end in (*y, *low) if known(end))])

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axhline(0, color=INK, linewidth=0.9, label="none")
        axes.plot(x, everything, color=INK, linewidth=0.9, linestyle=(0, (4, 3)), label="all")
        axes.fill_between(x, low, high, color=TIER_COLOURS[row.tier], alpha=0.2, linewidth=0)
        axes.plot(x, y, color=TIER_COLOURS[row.tier], linewidth=1.6, label="score")
        # Calling all soon falls far below 0; the rest of that line is cut off.
        axes.set(xlabel="threshold probability", ylabel="net benefit", xlim=(0, x[-1]))
        axes.set_ylim(max(bottom, -top) - 0.15 * top, 1.05 * top)
        axes.locator_params(nbins=5)
        axes.grid(True)
        figure.legend(loc="outside upper center", ncols=3)

    alt = (
        f"{plain(row.finding)}: net benefit on the test images at threshold probabilities from {x[0]:g} "
        f"to {x[-1]:g}: "
        f"{y[0]:.4f} to {y[-1]:.4f} with the calibrated score, with its interval as a band; {everything[0]:.4f} to "
        f"{everything[-1]:.4f} if all images are called positive (dashed); 0 if none is. "
        "Points of the curves are in the table below the plots."
    )
    return svg(name, alt, phantom, (4.4, 2.4), paint)


def net_benefits(table: pd.DataFrame, rows: Sequence[FindingRow]) -> Table:
    """Some points of each decision curve; decision_curves.csv has all of them."""
    return Table(
        "Points of the decision curves; decision_curves.csv has all of them",
        ("Finding", "Threshold probability", "Images", "Net benefit", "All called positive"),
        "lrrrr",
        [
            [
                row.finding,
                f"{point['threshold']:g}",
                f"{int(point['images']):,}",
                with_interval(point["net_benefit"], point["low"], point["high"], decimals=4),
                number(point["all"], 4),
            ]
            for row in rows
            for point in table[table["finding"] == row.finding].to_dict("records")[::STEP]
        ],
    )


def _threshold(value: float) -> str:
    """A threshold of calibrated scores, which are always below 1."""
    return "1 (no image is positive)" if value >= 1 else f"{value:.4f}"


def _error(row: FindingRow, error: str) -> str:
    """A calibration metric; the debiased ECE has no interval."""
    return number(row.value(error)) if error == "ece_debiased" else row.metrics[error].text()
