"""The report's section on confused pairs of findings and the geometry of the classifier."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ral.explain.contents import FindingGeometry, Geometry, MeanCosines, Vectors
from ral.reporting.plots import plain, svg
from ral.reporting.tables import Table
from ral.wording import number, percent

# Number of pairs shown; confusion.csv has all.
PAIRS = 15
NO_MEANS = MeanCosines(common=None, rare=None, common_to_rare=None)


def confused(pairs: pd.DataFrame, min_images: int) -> Table:
    """The pairs of findings with the largest excess of confusion over images with neither finding.

    Args:
        pairs: confusion.csv.
        min_images: minimum number of images of a listed pair.
    """
    excess = (pairs["share"] - pairs["share_without"]).rename("excess")
    top = pairs.assign(excess=excess)[(pairs["images"] >= min_images) & (excess > 0)]
    top = top.sort_values(["excess", "finding", "taken_for"], ascending=[False, True, True]).head(PAIRS)
    return Table(
        f"The {len(top)} pairs with the largest excess; all pairs are in confusion.csv",
        (
            "Finding present", "Confused with", "Images with the first only", "Times confused",
            "Share", "Share among images with neither",
        ),
        "llrrrr",
        [
            [
                row["finding"],
                row["taken_for"],
                f"{int(row['images']):,}",
                f"{int(row['times']):,}",
                percent(row["share"]),
                percent(row["share_without"]),
            ]
            for row in top.to_dict("records")
        ],
    )  # fmt: skip


CLASSIFIER, CLASS_MEANS = "classifier directions", "class means"


def directions(content: Geometry) -> tuple[str, Vectors]:
    """Name and values of the vectors to show: the classifier directions, else the class means."""
    if content.classifier.cosines is not None:
        return CLASSIFIER, content.classifier
    return CLASS_MEANS, content.class_means


def heat(name: str, content: Geometry, phantom: bool) -> str:
    """Cosine similarities of the findings' directions as a heat map, the most frequent finding first."""
    title, vectors = directions(content)
    names = [finding.finding for finding in content.findings]
    cosines = np.array(vectors.cosines, dtype=float)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        # With few colours, matplotlib draws the colour bar as shapes instead of a raster image.
        colours = matplotlib.colormaps["RdBu_r"].resampled(21)
        shade = axes.pcolormesh(np.ma.masked_invalid(cosines), cmap=colours, vmin=-1, vmax=1)
        axes.set_yticks(np.arange(len(names)) + 0.5, [plain(finding, 22) for finding in names])
        axes.set_xticks(np.arange(len(names)) + 0.5, [plain(finding, 22) for finding in names], rotation=90)
        axes.set_ylim(len(names), 0)
        axes.tick_params(length=0)
        axes.set_aspect("equal")
        figure.colorbar(shade, ax=axes, shrink=0.6, ticks=(-1, 0, 1), label="cosine")

    means = vectors.mean_cosine or NO_MEANS
    alt = (
        f"Cosine similarity of the {title} of {len(names)} findings, the most frequent first. Mean between the more "
        f"frequent half: {number(means.common)}, between the rarer half: {number(means.rare)}, between the two "
        f"halves: {number(means.common_to_rare)}. The numbers are in the table of cosines."
    )
    side = 2.2 + 0.2 * len(names)
    return svg(name, alt, phantom, (side + 0.6, side), paint)


def cosines(content: Geometry) -> Table:
    """The numbers of the heat map."""
    title, vectors = directions(content)
    names = [finding.finding for finding in content.findings]
    return Table(
        f"Cosines of the {title}",
        ("Finding", *names),
        "l" + "r" * len(names),
        [
            [name, *(number(value, 2) for value in row)]
            for name, row in zip(names, vectors.cosines or (), strict=True)
        ],
    )


def halves(content: Geometry) -> Table:
    """Mean cosines within and between the more frequent and the rarer half of the findings."""
    kinds = {CLASSIFIER: content.classifier.mean_cosine, CLASS_MEANS: content.class_means.mean_cosine}
    return Table(
        "Mean cosines",
        ("Vectors", "Within the more frequent half", "Within the rarer half", "Between the halves"),
        "lrrr",
        [
            [title, number(means.common), number(means.rare), number(means.common_to_rare)]
            for title, means in kinds.items()
            if means is not None
        ],
    )


def spread(findings: Sequence[FindingGeometry]) -> Table:
    """Feature variability of every finding, and the alignment of its features with the classifier direction."""
    return Table(
        "Geometry of every finding",
        (
            "Finding", "Training prevalence", "Images", "Variability (within / between)",
            "Length of the classifier direction", "Length at the ideal",
            "Cosine of classifier direction and class mean",
        ),
        "lrrrrrr",
        [
            [
                finding.finding,
                percent(finding.train_prevalence),
                f"{finding.images:,}",
                number(finding.variability),
                number(finding.weight_norm),
                number(finding.ideal_weight_norm),
                number(finding.alignment),
            ]
            for finding in findings
        ],
    )  # fmt: skip
