"""The parts of the report on attacks and shortcut probes: complete if requested, escaped, absent otherwise."""

from dataclasses import replace

import pytest
from evaluated import HOSTILE
from report_inputs import FINDINGS, Page, make

from ral.reporting import attacked, probed
from ral.reporting.card import card
from ral.reporting.report import Inputs, render
from ral.reporting.robustness import section
from ral.robustness.contents import (
    AttackInfo,
    Attacks,
    Audited,
    AuditedFinding,
    GapRow,
    ProbeRow,
    Probes,
    Robustness,
    ShiftRow,
    StratumRow,
    WithinRow,
)

ATTACKS = (
    AttackInfo(name="finding_1", target="finding", eps=1.0),
    AttackInfo(name="finding_2.5", target="finding", eps=2.5),
    AttackInfo(name="all_1", target="all", eps=1.0),
    AttackInfo(name="all_2.5", target="all", eps=2.5),
)
AP = {"finding_1": 0.4, "finding_2.5": 0.2, "all_1": 0.45, "all_2.5": 0.3}
LEVELS = [
    ("macro", "macro"), ("tier", "head"), ("tier", "medium"), ("tier", "tail"),
    *(("finding", name) for name in FINDINGS),
]  # fmt: skip


def attacks() -> Attacks:
    """All estimable findings have the same AP; those of the tail have none."""
    rows = []
    for name, value in AP.items():
        for level, line in LEVELS:
            row = ShiftRow(shift=name, level=level, name=line, metric="ap", findings=0)
            if line not in ("Hernia", "tail"):
                row = ShiftRow(
                    shift=name, level=level, name=line, metric="ap", findings=1, clean=0.6, value=value,
                    difference=value - 0.6, low=value - 0.65, high=value - 0.55,
                )  # fmt: skip
            rows.append(row)
    gap = GapRow(
        attack="finding_1", clean=0.31, clean_low=0.21, clean_high=0.41, value=0.27, value_low=0.17, value_high=0.37,
        difference=-0.04, low=-0.08, high=0.01,
    )  # fmt: skip
    return Attacks(
        attacks=ATTACKS, steps=5, images=1234, patients=600, not_estimable={"Hernia": "few"}, rows=tuple(rows), gaps=(gap,)
    )  # fmt: skip


def within(attribute: str, finding: str, difference: float, p: float) -> WithinRow:
    return WithinRow(
        attribute=attribute, finding=finding, auroc=0.8, within=0.8 + difference, difference=difference,
        low=difference - 0.02, high=difference + 0.02, p=p, p_holm=p,
    )  # fmt: skip


def probes() -> Probes:
    """A probe that finds the file type, one of a value with a hostile name, and one that is not estimable."""
    first, second = list(FINDINGS)[:2]
    return Probes(
        folds=5,
        left_out={"age": "not in the data"},
        probes=(
            ProbeRow(
                attribute="file_type", value="JPEG", others="PNG", images=1200, patients=400, share=0.25, auroc=0.987,
                low=0.97, high=0.99,
            ),
            ProbeRow(
                attribute="source", value=HOSTILE, others="", images=30, patients=20, share=0.1, auroc=0.51, low=0.4,
                high=0.6,
            ),
            ProbeRow(attribute="source", value="C", others="", images=3, patients=2, share=0.01, note="too <few>"),
        ),
        within=(
            within("file_type", "macro", -0.1, 0.001),
            within("file_type", first, -0.234, 0.002),
            within("source", first, -0.01, 0.5),
            within("source", second, 0.05, 0.01),
        ),
        strata=(
            StratumRow(
                attribute="file_type", value="JPEG", finding=first, images=1200, positives=80, ap=0.777, low=0.7,
                high=0.8, others=0.1, difference=0.677, difference_low=0.6, difference_high=0.7, note="",
            ),
        ),
    )  # fmt: skip


def inputs(phantom: bool = False, **parts: object) -> Inputs:
    """The inputs of a report with these two parts of the audit only, some of them replaced."""
    result = Robustness(
        notice="Research",
        data="phantom" if phantom else "images",
        audited=Audited(
            images=2000,
            patients=900,
            findings=tuple(AuditedFinding(name=name, tier=tier) for name, (tier, *_) in FINDINGS.items()),
            replicates=1000,
            confidence=0.95,
        ),
        attacks=attacks(),
        probes=probes(),
    )
    return replace(make(phantom), robustness=result.model_copy(update=parts))


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render(inputs()))


def test_the_sentences_have_the_results(page: Page) -> None:
    paragraphs = page.text("p")
    first = next(iter(FINDINGS))
    assert (
        "Under attacks of at most 1 gray level of 255 on one finding at a time, macro AP changes from 0.600 to 0.400, "
        "by -0.200 (-0.250 to -0.150), on 1,234 test images; the AP of the head minus that of the tail, from 0.310 to 0.270."
    ) in paragraphs
    assert (
        "Of the attributes, a linear probe on the features tells file type JPEG best: AUROC 0.987 (0.970–0.990)."
    ) in paragraphs
    assert (
        "Among images with the same value of an attribute, AUROC is significantly lower in 1 of 3 comparisons of a "
        f"finding (p after Holm's correction below 0.05): {first} by file type. The largest fall: {first} by file type, "
        "-0.234 (-0.254 to -0.214)."
    ) in paragraphs
    assert "Not available: Probe of age: not in the data." in paragraphs


def test_the_tables_have_the_numbers(page: Page) -> None:
    cells = set(page.text("td"))
    assert {
        "head − tail",
        "0.310 (0.210–0.410)",
        "-0.040 (-0.080 to +0.010)",
        "Each finding alone",
        "2.5",
    } <= cells | set(page.text("th"))
    assert {"0.987 (0.970–0.990)", "25.0 %", "too <few>", "0.566", "0.777"} <= cells
    shown = probed.within(probes())
    assert [(row[0], row[1]) for row in shown.rows] == [
        ("file type", "all findings"),
        ("file type", next(iter(FINDINGS))),
    ]
    macro = [row for row in attacked.means(attacks()).rows if row[2] == "all findings"]
    assert [(row[0], row[1], row[4]) for row in macro] == [
        ("Each finding alone", "1", "0.400"),
        ("Each finding alone", "2.5", "0.200"),
        ("All findings at once", "1", "0.450"),
        ("All findings at once", "2.5", "0.300"),
    ]
    assert not any(row[2] == "tier tail" for row in attacked.means(attacks()).rows)


def test_names_are_escaped_and_phantoms_marked() -> None:
    text = render(inputs(phantom=True))
    assert HOSTILE not in text
    page = Page(text)
    alternatives = [a["aria-label"] for _, a, _ in page.elements if a.get("role") == "img"]
    for part in ("linear probes for 2 properties", "under attacks within 1, 2.5 gray levels"):
        (label,) = [label for label in alternatives if part in label]
        assert label.startswith("PHANTOM")
    assert all("PHANTOM" in drawn for drawn in page.text("svg"))


def test_parts_that_were_not_requested_are_left_out() -> None:
    without = section(inputs(attacks=None).robustness, False)
    assert set(without.plots) == {"probes"}
    assert "Shortcut probes" in render(inputs(attacks=None))
    without = section(inputs(probes=None).robustness, False)
    assert set(without.plots) == {"attacks"}
    assert "Shortcut probes" not in render(inputs(probes=None))
    no_features = probes().model_copy(update={"probes": (), "not_available": "no feature map."})
    shown = section(inputs(probes=no_features).robustness, False)
    assert "Probes: no feature map." in shown.not_available
    assert set(shown.plots) == {"attacks"}
    nothing = Probes(folds=5, left_out={"view": "one value: PA"})
    assert "Probe of view: one value: PA." in render(inputs(probes=nothing))


def test_the_card_has_the_tables() -> None:
    text = card(inputs())
    assert "tells file type JPEG best" in text
    assert "| file type | JPEG, not PNG | 1,200 | 25.0 % | 0.987 (0.970–0.990) |" in text
    assert "| Each finding alone | 1 | all findings | 0.600 | 0.400 | -0.200 (-0.250 to -0.150) |" in text
    assert HOSTILE not in text
