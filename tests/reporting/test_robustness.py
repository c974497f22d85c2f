"""The report's and the model card's section on changed images: absent if the step is off, complete if it is on."""

from dataclasses import replace

import pytest
from evaluated import HOSTILE
from report_inputs import FINDINGS, Page, make

from ral.evaluation.results import Level
from ral.reporting.card import card
from ral.reporting.report import Inputs, render
from ral.reporting.robustness import section, sentences
from ral.robustness.contents import (
    Audited,
    AuditedFinding,
    Flip,
    FlipRow,
    ProbeRow,
    Probes,
    Robustness,
    ShiftInfo,
    ShiftRow,
    Shifts,
    WithinRow,
)

SHIFTS = (
    ShiftInfo(name="jpeg_95", kind="jpeg", strength=95, label="JPEG, quality 95"),
    ShiftInfo(name="jpeg_30", kind="jpeg", strength=30, label="JPEG, quality 30"),
    ShiftInfo(name="gamma_2", kind="gamma", strength=2, label="Gamma 2"),
    ShiftInfo(name="pad", kind="pad", strength=None, label="Padding", not_available="because <b>"),
)
# Difference of macro AP, its p value after Holm's correction.
CHANGES = {"jpeg_95": (0.0012, 1.0), "jpeg_30": (-0.1234, 0.0004), "gamma_2": (-0.0512, 0.2)}
LEVELS: list[tuple[Level, str]] = [
    ("macro", "macro"), ("tier", "head"), ("tier", "medium"), ("tier", "tail"),
    *(("finding", name) for name in FINDINGS),
]  # fmt: skip


def audit(data: str = "images") -> Robustness:
    """A result whose last finding, the only one of the tail, is not estimable."""
    rows = []
    for shift, (change, p) in CHANGES.items():
        for level, name in LEVELS:
            for metric, clean in {
                "ap": 0.6,
                "auroc": 0.8,
                "brier": 0.1,
                "ece": 0.02,
                "calls": 1234.0,
            }.items():
                row = ShiftRow(shift=shift, level=level, name=name, metric=metric, findings=0)
                if name not in ("Hernia", "tail"):
                    moved = 100.0 if metric == "calls" else change
                    row = ShiftRow(
                        shift=shift, level=level, name=name, metric=metric, findings=1, clean=clean, value=clean + moved,
                        difference=moved, low=moved - 0.01, high=moved + 0.01, p=p, p_holm=p,
                    )  # fmt: skip
                rows.append(row)
    flips = tuple(
        FlipRow(level=level, name=name, logit=0.321)
        if name in ("Hernia", "tail")
        else FlipRow(
            level=level, name=name, logit=0.432, probability=0.021, changed_calls=0.0345, low=0.02, high=0.05,
            rank_correlation=0.912,
        )
        for level, name in LEVELS
    )  # fmt: skip
    return Robustness(
        notice="Research",
        data=data,
        audited=Audited(
            images=200,
            patients=100,
            findings=tuple(AuditedFinding(name=name, tier=tier) for name, (tier, *_) in FINDINGS.items()),
            replicates=1000,
            confidence=0.95,
        ),
        shifts=Shifts(shifts=SHIFTS, rows=tuple(rows)),
        flip=Flip(rows=flips, changed_images=0.0789, low=0.06, high=0.1),
    )


def inputs(phantom: bool = False, **parts: object) -> Inputs:
    """The inputs of a report with an audit, some parts of which are replaced."""
    result = audit("phantom" if phantom else "images").model_copy(update=parts)
    return replace(make(phantom), robustness=result)


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render(inputs()))


def test_without_the_step_there_is_no_section() -> None:
    off = make(phantom=False)
    text = render(off)
    assert 'href="#robustness"' not in text
    assert 'id="robustness"' not in text
    assert "## Robustness" not in card(off)
    assert section(off.robustness, False) is None


def test_the_section_says_what_was_measured(page: Page) -> None:
    paragraphs = page.text("p")
    assert (
        "Macro AP falls significantly under 1 of 3 shifts (p after Holm's correction below 0.05). The lowest: JPEG, "
        "quality 30, -0.123 (-0.133 to -0.113)."
    ) in paragraphs
    assert (
        "If left and right are exchanged, at least one call changes on 7.89 % of the images (6.00 % to 10.0 %)."
    ) in paragraphs
    assert (
        "The number of calls changes significantly under 1 of 3 shifts: from +8.1 % (Gamma 2) to +8.1 % (JPEG, quality 95)."
    ) in paragraphs
    assert "Not available: Padding: because <b>." in paragraphs
    cells = page.text("td")
    assert {"-0.123 (-0.133 to -0.113)", "<0.001", "1,234 → 1,334", "3.45 %", "0.912", "0.432"} <= set(cells)
    links = [attributes.get("href") for tag, attributes, _ in page.elements if tag == "a"]
    assert "#robustness" in links


def test_names_from_data_are_escaped_and_plots_have_their_text() -> None:
    text = render(inputs(phantom=True))
    assert HOSTILE not in text
    page = Page(text)
    alternatives = [a["aria-label"] for _, a, _ in page.elements if a.get("role") == "img"]
    shown = [label for label in alternatives if "as a heat map" in label and "under 3 shifts" in label]
    assert len(shown) == 1
    assert "From -0.123 to 0.001." in shown[0]
    assert shown[0].startswith("PHANTOM")
    assert any("by JPEG quality: none, 95, 30." in label for label in alternatives)
    assert any("left and right are exchanged" in label for label in alternatives)
    assert all("PHANTOM" in drawn for drawn in page.text("svg"))
    assert render(inputs(phantom=True)) == text


def test_parts_that_were_not_requested_are_left_out() -> None:
    only_flip, only_shifts = inputs(shifts=None), inputs(flip=None)
    for one, plots in ((only_flip, {"flip"}), (only_shifts, {"heat", "jpeg"})):
        shown = section(one.robustness, False)
        assert shown is not None
        assert set(shown.plots) == plots
        assert 'id="robustness"' in render(one)
    without_jpeg = audit().shifts
    kept = tuple(info for info in SHIFTS if info.kind != "jpeg")
    rows = tuple(row for row in without_jpeg.rows if not row.shift.startswith("jpeg"))
    shown = section(audit().model_copy(update={"shifts": Shifts(shifts=kept, rows=rows)}), False)
    assert set(shown.plots) == {"heat", "flip"}


def test_no_calls_are_no_unchanged_calls() -> None:
    flip = audit().flip.model_copy(update={"changed_images": None, "low": None, "high": None})
    assert not any("left and right" in text for text in sentences(audit().model_copy(update={"flip": flip})))
    assert 'id="robustness"' in render(inputs(flip=flip))


def probe(low: float, **changes: object) -> ProbeRow:
    row = {
        "attribute": "view", "value": "AP", "others": "PA", "images": 80, "patients": 40, "share": 0.4,
        "auroc": low + 0.1, "low": low, "high": low + 0.2,
    }  # fmt: skip
    return ProbeRow.model_validate(row | changes)


def test_a_probe_at_chance_tells_nothing() -> None:
    def told(*rows: ProbeRow) -> str:
        return " ".join(sentences(audit().model_copy(update={"probes": Probes(folds=5, probes=rows)})))

    chance = probe(0.45, attribute="sex", value="F", others="M")
    best = "a linear probe on the features tells view AP best: AUROC 0.720 (0.620–0.820)."
    assert best in told(
        chance, probe(0.62), probe(0.4, attribute="age", value="80+", others="", auroc=0.8, high=1)
    )
    assert (
        "A linear probe on the features tells none of the attributes significantly better than chance"
        in told(chance)
    )
    assert "tells" not in told(probe(0.5, auroc=None, note="too few"))


def test_the_largest_fall_is_named_even_if_it_is_not_significant_and_a_rise_is_none() -> None:
    def told(changes: dict[str, float]) -> str:
        rows = tuple(
            WithinRow(
                attribute="file_type", finding=name, auroc=0.9, within=0.9 + change, difference=change, low=change - 0.1,
                high=change + 0.1, p=0.02, p_holm=0.4,
            )
            for name, change in changes.items()
        )  # fmt: skip
        said = sentences(audit().model_copy(update={"probes": Probes(folds=5, within=rows)}))
        (text,) = (text for text in said if "same value" in text)
        return text

    text = told({"Mass": -0.05, "Nodule": -0.24, "macro": -0.3})
    assert "AUROC is significantly lower in 0 of 2 comparisons of a finding" in text
    assert text.endswith("The largest fall: Nodule by file type, -0.240 (-0.340 to -0.140).")
    assert told({"Mass": 0.05, "Nodule": 0.02}).endswith("below 0.05).")


def test_probes_without_findings_have_their_table() -> None:
    shown = section(audit().model_copy(update={"probes": Probes(folds=5, probes=(probe(0.62),))}), False)
    assert {"probes"} <= set(shown.tables)
    page = Page(render(inputs(probes=Probes(folds=5, probes=(probe(0.62),)))))
    assert "AP, not PA" in page.text("td")


def test_the_card_has_the_means() -> None:
    text = card(inputs())
    assert "## Robustness" in text
    assert "Macro AP falls significantly under 1 of 3 shifts" in text
    assert "| JPEG, quality 30 | 0.477 | -0.123 (-0.133 to -0.113) |" in text
    assert HOSTILE not in text
