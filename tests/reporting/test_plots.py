"""The plots: reproducible bytes, unique ids, escaped data."""

import math
import re
from collections.abc import Callable
from xml.etree import ElementTree

import matplotlib
import pandas as pd
import pytest
from evaluated import tables
from prepared_data import dataset_info
from simulated_release import PASSED

from ral.data.dataset_info import SplitSize
from ral.evaluation.results import NO_INTERVAL, Interval, ScoredImages
from ral.evaluation.specs import CALIBRATION_METRICS, FINDING_METRICS
from ral.evaluation.table_rows import FindingRow
from ral.reporting import calibration, flow, network, plots

HOSTILE = '<script>alert("1")</script> $x_1$ &'


def row(name: str, tier: str, prevalence: float, value: float | None) -> FindingRow:
    """A row of findings.csv; without a value it is not estimable."""
    one = NO_INTERVAL if value is None else Interval(value, value - 0.1, value + 0.1)
    return FindingRow(
        finding=name,
        tier=tier,
        train_prevalence=prevalence,
        train_positives=int(1000 * prevalence),
        test_positives=int(1000 * prevalence),
        test_rows=1000,
        threshold=None,
        metrics=dict.fromkeys(FINDING_METRICS, one),
        uncalibrated=dict.fromkeys(CALIBRATION_METRICS),
        calibration="",
        not_estimable="",
    )


ROWS = [
    row(HOSTILE, "head", 0.2, 0.6),
    row("Mass", "medium", 0.05, 0.4),
    row("Hernia", "tail", 0.002, None),
    row("Never", "tail", 0.0, None),
]
CURVES = pd.DataFrame(
    [(HOSTILE, kind, x, y) for kind in ("roc", "pr") for x, y in ((0.0, 0.0), (0.2, 0.7), (1.0, 1.0))],
    columns=["finding", "curve", "x", "y"],
)

EVALUATED = tables("images", [HOSTILE, "Mass"])
BINS, NET_BENEFIT = EVALUATED["reliability"], EVALUATED["decision_curves"]
GEOMETRY = EVALUATED["geometry"]
SEALED = ScoredImages(rows=50, patients=2, sealed_patients=1)
# Every row has one of several reasons, or is used.
DATASET = dataset_info(
    64, [], [], rows=1234, left_out={"no image": 1000, HOSTILE: 4, "view not in data.views": 30}, images=200, patients=8,
    split={
        "train": SplitSize(images=120, patients=5), "val": SplitSize(images=30, patients=1),
        "test": SplitSize(images=50, patients=2),
    },
)  # fmt: skip
VALIDATION = PASSED.model_copy(update={"patients": 9})

DRAW: dict[str, Callable[[bool], str]] = {
    "ap": lambda phantom: plots.forest("ap", "ap", ROWS, None, phantom),
    "auroc": lambda phantom: plots.forest("auroc", "auroc", ROWS, 0.5, phantom),
    "curve": lambda phantom: plots.curve_pair("curve", ROWS[0], CURVES, phantom),
    "epochs": lambda phantom: plots.epochs(
        "epochs", "Loss", [1, 2, 3], [0.3, math.nan, 0.1], [0.2, 0.2, 0.1], 3, phantom
    ),
    "reliability": lambda phantom: calibration.reliability("reliability", ROWS[0], BINS, phantom),
    "decision": lambda phantom: calibration.decision_curve("decision", ROWS[0], NET_BENEFIT, phantom),
    "flow": lambda phantom: flow.flow("flow", VALIDATION, DATASET, SEALED, phantom),
    "cosines": lambda phantom: network.heat("cosines", GEOMETRY, phantom),
    "prevalences": lambda phantom: plots.prevalences("prevalences", ROWS, 0.1, 0.01, phantom),
}
every_plot = pytest.mark.parametrize("name", DRAW)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter("text")]


@every_plot
def test_same_bytes_again_and_whatever_matplotlibrc_says(name: str) -> None:
    first = DRAW[name](True)
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 20, "svg.fonttype": "path"}):
        assert DRAW[name](True) == first


@every_plot
def test_watermark_on_phantom_images_only(name: str) -> None:
    assert "PHANTOM" in texts(DRAW[name](True))
    assert "PHANTOM" not in DRAW[name](False)


@every_plot
def test_has_an_alternative_text(name: str) -> None:
    root = ElementTree.fromstring(DRAW[name](False))
    assert root.attrib["role"] == "img"
    assert len(root.attrib["aria-label"]) > 40
    assert ElementTree.fromstring(DRAW[name](True)).attrib["aria-label"].startswith("PHANTOM DATA. ")


@every_plot
def test_refers_only_to_itself(name: str) -> None:
    svg = DRAW[name](True)
    ids = re.findall(r' id="([^"]*)"', svg)
    assert ids
    assert len(ids) == len(set(ids))
    assert all(one.startswith(f"{name}-") for one in ids)
    references = re.findall(r'(?:url\(#|href="#)([^)"]*)', svg)
    assert set(references) <= set(ids)
    assert "http" not in svg
    assert "<style" not in svg


def test_ids_of_two_plots_do_not_clash() -> None:
    ids = [re.findall(r' id="([^"]*)"', draw(True)) for draw in DRAW.values()]
    assert len({one for some in ids for one in some}) == sum(map(len, ids))


def test_names_stay_text() -> None:
    for name in ("ap", "auroc", "prevalences"):
        svg = DRAW[name](False)
        assert "<script" not in svg
        assert plots.plain(HOSTILE, 22) in texts(svg)
    # Long enough for the part that mathtext would read as a formula.
    svg = plots.forest("ap", "ap", [row("a $x_1$ $", "head", 0.2, 0.5)], None, False)
    assert "a $x_1$ $" in texts(svg)


def test_names_that_xml_cannot_hold() -> None:
    svg = plots.forest("ap", "ap", [row("a\x00b\ud800c", "head", 0.2, 0.5)], None, False)
    assert "a\ufffdb\ufffdc" in texts(svg)


def test_not_estimable_is_said_and_not_drawn() -> None:
    svg = plots.forest("ap", "ap", ROWS, None, False)
    assert texts(svg).count("not estimable") == 2


def test_decision_curves_without_an_interval_or_of_no_benefit_can_be_drawn() -> None:
    bare = NET_BENEFIT.assign(low=math.nan, high=math.nan)
    assert "threshold probability" in texts(calibration.decision_curve("bare", ROWS[0], bare, True))
    useless = bare.assign(net_benefit=0.0, **{"all": -0.1})
    assert "threshold probability" in texts(calibration.decision_curve("useless", ROWS[0], useless, True))


def test_nothing_to_draw() -> None:
    nothing = [row("Hernia", "tail", 0.0, None)]
    assert "not estimable" in texts(plots.forest("ap", "ap", nothing, None, False))
    assert "not estimable" in texts(plots.forest("auroc", "auroc", nothing, 0.5, False))
    assert "0.00 %" in texts(plots.prevalences("p", nothing, 0.1, 0.01, False))
    assert "Loss" in texts(plots.epochs("e", "Loss", [1], [math.nan], [], 0, False))


def test_a_perfect_or_a_hopeless_score_can_be_drawn() -> None:
    for value in (0.0, 1.0):
        extreme = [row("Mass", "medium", 0.05, value)]
        for svg in (
            plots.forest("ap", "ap", extreme, None, False),
            plots.forest("auroc", "auroc", extreme, 0.5, False),
        ):
            assert "Mass" in texts(svg)
            assert "not estimable" not in texts(svg)
