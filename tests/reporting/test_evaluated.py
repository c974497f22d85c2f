"""The report's sections on audit, thresholds, pictures and geometry."""

import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from evaluated import HOSTILE, PICTURES, saved_calibration, saved_map
from evaluated import audit as audit_rows
from evaluated import gallery as gallery_json
from evaluated import geometry as geometry_json
from report_inputs import FINDINGS, Page, make, write

from ral.config.evaluate import ThresholdConfig
from ral.errors import UserError
from ral.evaluation.table_rows import AuditRow, CharacteristicsRow, OperatingRow, ReadingRow, read_rows
from ral.explain.contents import Gallery, Geometry
from ral.reporting import audit, calibration, data_tables, gallery, network, tables
from ral.reporting.report import Inputs, render, rows_of
from ral.reporting.tables import Table
from ral.wording import NOT_ESTIMABLE
from tasks import report

NAMES = list(FINDINGS)
ROWS = rows_of(make(phantom=False).findings)


def texts(table: Table) -> list[list[str]]:
    return [[cell if isinstance(cell, str) else cell.text for cell in row] for row in table.rows]


def audited(table: pd.DataFrame) -> audit.Audit:
    return audit.audit(read_rows(table, AuditRow))


def characteristics(table: pd.DataFrame) -> list[list[str]]:
    return texts(data_tables.characteristics(read_rows(table, CharacteristicsRow)))


def test_flagged_gaps_come_first_and_all_tests_are_counted() -> None:
    content = audited(audit_rows(["Effusion", "Mass"]))
    assert content.flagged is not None
    assert [row[:4] for row in texts(content.flagged)] == [[HOSTILE, "sex", "Effusion", "Sensitivity"]]
    assert content.tested == 18
    sentence = audit.summary_sentence(content, 0.95)
    assert sentence.startswith(
        "18 gaps between a group and all other images were tested, with Holm's correction for multiple testing"
    )
    assert "1 is flagged (corrected p of at most 0.05)" in sentence
    assert content.missing == ("source",)


def test_too_few_is_said_and_no_number() -> None:
    content = audited(audit_rows(["Effusion", "Mass"]))
    small = texts(content.groups[0])[-1]
    assert small == ["small", "100", "50", "0", *["too few"] * 5]
    assert texts(content.findings[0])[-1] == ["small", "Effusion", "20", *["too few"] * 5]


def test_no_flag_does_not_mean_no_gap() -> None:
    rows = audit_rows(["Effusion", "Mass"])
    sentence = audit.summary_sentence(audited(rows[rows["flagged"] != "yes"]), 0.95)
    assert "none is flagged" in sentence
    assert "No flag does not mean no gap" in sentence


def test_thresholds_of_a_rule_and_one_that_calls_nothing() -> None:
    inputs = make(phantom=False)
    rules = calibration.rules(ThresholdConfig(rule="cost", sensitivity=0.9, miss_cost=10.0))
    assert list(rules) == ["max_f1", "sensitivity", "cost", "prevalence"]
    points = read_rows(inputs.operating, OperatingRow)
    rows = texts(calibration.operating(points, ROWS, "max_f1", ""))
    assert [row[0] for row in rows] == NAMES[:2]
    assert rows[0][1:7] == ["0.3217", "31", "17", "9", "1,143", "0.775 (0.600–0.900)"]
    assert texts(calibration.operating(points, ROWS, "cost", ""))[0][1] == "1 (no image is positive)"


def test_points_of_the_decision_curves() -> None:
    table = calibration.net_benefits(make(phantom=False).decision_curves, ROWS[:1])
    assert texts(table)[0] == ["Effusion", "0.02", "200", "0.1317 (0.0800–0.1700)", "0.1500"]
    assert texts(table)[-1] == ["Effusion", "0.5", "200", "0.0053 (no interval)", "-1.0500"]
    assert len(table.rows) == 5


def test_characteristics_say_what_is_unknown() -> None:
    inputs = make(phantom=False)
    assert characteristics(inputs.characteristics) == [
        ["Images", *["200"] * 3],
        ["Patients", *["100"] * 3],
        ["Sex: F", *["80 (40.0 %)"] * 3],
        [f"Sex: {HOSTILE}", *["120 (60.0 %)"] * 3],
        ["Age in years, median (quartiles)", *["48 (35.5–59)"] * 3],
        ["Age: unknown", *["10 (5.00 %)"] * 3],
        *([f"Finding: {name}", *["40 (25.0 %); 40 unknown"] * 3] for name in NAMES),
    ]
    ages = inputs.characteristics["attribute"] == "age_years"
    nothing = inputs.characteristics.assign(
        median=np.nan, images=inputs.characteristics["images"].where(~ages, 0)
    )
    rows = {row[0]: row[1] for row in characteristics(nothing)}
    assert rows["Age in years, median (quartiles)"] == "unknown"
    assert rows["Age: unknown"] == "200 (100.0 %)"


def test_pictures_are_in_the_page_and_are_those_of_the_files() -> None:
    images = [a for tag, a, _ in Page(render(make(phantom=False))).elements if tag == "img"]
    shown = [base64.b64decode(image["src"].removeprefix("data:image/jpeg;base64,")) for image in images]
    assert shown == [
        PICTURES[name] for name in ("image_001.jpg", "map_001.jpg", "image_002.jpg", "image_001.jpg")
    ]
    assert images[0]["alt"] == f"Image {HOSTILE}, a hit for Effusion"
    assert images[2]["alt"] == "Image b.png, a false alarm for Effusion"
    assert images[3]["alt"] == "Image c.png, a miss for Effusion"


def without_images(inputs: Inputs, by: str) -> Inputs:
    """The same inputs with images switched off in size_limit of the two ways."""
    if by == "report.show_images":
        section = inputs.params.report.model_copy(update={"show_images": False})
        return replace(inputs, params=inputs.params.model_copy(update={"report": section}))
    return replace(inputs, gallery=inputs.gallery.model_copy(update={"images": False}), pictures={})


@pytest.mark.parametrize("by", ["report.show_images", "explain.show_images"])
def test_images_that_may_not_be_shown_are_left_out(by: str) -> None:
    content = render(without_images(make(phantom=False), by))
    assert f"Pictures are not shown: {by} is false." in Page(content).text("p")
    assert "<img" not in content
    assert "image/jpeg" not in content
    # Ids and ranks stay.
    assert "Effusion Hits" in Page(content).text("body")[0]


def test_pictures_beyond_the_limit_are_left_out_first_images_first() -> None:
    plain = gallery_json("images", NAMES)
    plain["findings"][0]["hits"] *= 2
    content = Gallery.model_validate(plain)
    size_limit = sum(
        4 * len(PICTURES[name]) // 3 + 4
        for name in ("image_001.jpg", "map_001.jpg", "image_002.jpg", "image_001.jpg")
    )
    inputs = make(phantom=False)
    selected = gallery.select(content, inputs.calibration, "max_f1")
    shown = gallery.gallery(content, selected, [], PICTURES, False, max_bytes=size_limit)
    assert shown.omitted == 1
    assert [len(image.pictures) for image in shown.parts[0].kinds[0].images] == [2, 0]
    assert gallery.gallery(content, selected, [], PICTURES, False).omitted == 0


def candidates(**logits: list[float]) -> Gallery:
    """A gallery.json of one finding whose image ids are their logits."""
    content = gallery_json("images", NAMES)
    content["findings"] = [
        {"finding": "Effusion", "positives": 9, "negatives": 9, "unknown": 0, "note": None}
        | {
            kind: [
                {"image_id": f"{logit:g}", "logit": logit, "rank": 1, "image": "image_001.jpg"}
                for logit in several
            ]
            for kind, several in logits.items()
        }
    ]
    return Gallery.model_validate(content)


def shown(content: Gallery, saved: dict[str, Any] | None) -> list[list[str]]:
    (selected,) = gallery.select(content, saved_calibration({"Effusion": saved}), "max_f1")
    return [[image.content.image_id for image in several] for several in selected.kinds.values()]


def test_errors_are_those_beyond_the_threshold() -> None:
    content = candidates(hits=[2.0, 0.0, -2.0], false_positives=[1.0, -1.0], misses=[-2.0, 0.0, 2.0])
    # The sigmoid of 0 is the threshold itself, which is reached.
    at_half = saved_map() | {"thresholds": {"max_f1": 0.5}}
    assert shown(content, at_half) == [["2", "0"], ["1"], ["-2"]]
    assert shown(content, saved_map() | {"thresholds": {"max_f1": 1.0}}) == [[], [], ["-2", "0", "2"]]
    # Without a threshold nothing is an error; no image is listed twice.
    for saved in (None, saved_map() | {"thresholds": {}}):
        assert shown(content, saved) == [["2", "0", "-2"], ["1", "-1"], []]


def test_a_kind_without_images_and_a_finding_without_threshold_say_so() -> None:
    content = candidates(hits=[2.0], false_positives=[-1.0], misses=[2.0])
    inputs = make(phantom=False)

    def page(saved: dict[str, Any] | None) -> str:
        calibration = saved_calibration({"Effusion": saved})
        return Page(render(replace(inputs, gallery=content, calibration=calibration))).text("body")[0]

    body = page(saved_map())
    assert "Effusion 31 hits, 17 false alarms, 9 misses" in body
    assert "No negative test image reaches the threshold." in body
    assert "Every positive test image reaches the threshold." in body
    body = page(None)
    assert "No threshold was chosen: the images are ordered by score alone." in body
    assert "Positive, highest scores 2 raw score 2.000, rank 1 of 18" in body
    assert "reaches the threshold." not in body


def test_scores_are_never_shown_as_0_or_1() -> None:
    content = candidates(hits=[30.0], false_positives=[], misses=[-30.0])
    inputs = make(phantom=False)
    table = gallery.listed(gallery.select(content, inputs.calibration, "max_f1"))
    assert [row[5] for row in texts(table)] == [">0.9999", "<0.0001"]


def test_a_page_that_is_too_large_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MAX_BYTES", 1000)
    inputs = make(phantom=False)
    out = tmp_path / "report.html"
    with pytest.raises(UserError, match=r"report\.show_images: false"):
        report.run(inputs.params, *write(inputs, tmp_path), out)
    assert not out.exists()


def test_confused_pairs_are_ordered_by_what_exceeds_the_others() -> None:
    rows = [
        ("a", "b", 40, 0.9, 0.85),
        ("b", "a", 40, 0.3, 0.1),
        ("a", "c", 2, 1.0, 0.0),
        ("c", "a", 40, 0.1, 0.2),
    ]
    columns = ["finding", "taken_for", "images", "share", "share_without"]
    table = network.confused(pd.DataFrame(rows, columns=columns).assign(times=1), 5)
    assert [row[:2] for row in texts(table)] == [["b", "a"], ["a", "b"]]


def test_geometry_without_classifier_shows_class_means_and_without_features_nothing() -> None:
    content = geometry_json("images", NAMES)
    assert network.directions(Geometry.model_validate(content))[0] == "classifier directions"
    lacking = Geometry.model_validate(
        content | {"classifier": {"not_available": f"why {HOSTILE}"}, "collapse": None}
    )
    assert network.directions(lacking) == ("class means", lacking.class_means)
    inputs = make(phantom=False)
    body = Page(render(replace(inputs, geometry=lacking))).text("body")[0]
    assert f"Class means only: why {HOSTILE}." in body
    assert "neural collapse" not in body
    whole = Page(render(inputs)).text("body")[0]
    assert f"classifier 0.456, class means {NOT_ESTIMABLE}." in whole
    assert "in fewer than 12.3 training images" in whole
    assert "1.250" in whole
    nothing = Geometry(notice="", data="images", not_available=HOSTILE)
    body = Page(render(replace(inputs, geometry=nothing))).text("body")[0]
    assert f"Not available: {HOSTILE}." in body


def test_labels_to_review_are_listed_only_if_they_were_asked_for() -> None:
    inputs = make(phantom=False)
    page = Page(render(inputs))
    assert "Labels to review" not in page.text("h2")
    label = {
        "finding": "Mass",
        "image_id": f"7{HOSTILE}",
        "label": 1,
        "probability": 0.0123,
        "outlier_factor": None,
    }
    for labels, text in (
        ([label | {"reasons": ["predicted otherwise", "outlier"]}], "unlike other images with the finding"),
        ([], "No training label looks wrong."),
    ):
        content = Gallery.model_validate(inputs.gallery.model_dump(exclude_unset=True) | {"review": labels})
        page = Page(render(replace(inputs, gallery=content)))
        assert "Labels to review" in page.text("h2")
        assert text in page.text("body")[0]
        assert (f"7{HOSTILE} positive 0.012" in page.text("body")[0]) == bool(labels)


def test_a_finding_that_was_not_read_twice_has_no_numbers() -> None:
    inputs = make(phantom=False)
    unread = pd.DataFrame([{"finding": "Effusion", "images": 0, "note": "no test image was read twice"}])
    readings = unread.reindex(columns=inputs.second_reading.columns)
    (row,) = texts(tables.second_reading(read_rows(readings, ReadingRow)))
    assert row[:5] == ["Effusion", "0", "0", "0", "0"]
    assert row[5:] == [*["not estimable"] * 7, "no test image was read twice"]


def test_no_second_reading_no_section() -> None:
    inputs = make(phantom=False)
    assert "Second reading" in Page(render(inputs)).text("h2")
    assert "Second reading" not in Page(
        render(replace(inputs, second_reading=inputs.second_reading[:0]))
    ).text("h2")


def test_the_previous_model_is_compared_in_words_and_numbers() -> None:
    inputs = make(phantom=False)
    body = Page(render(inputs)).text("body")[0]
    assert (
        "Macro AP 0.512, previously 0.481: +0.031 (+0.011 to +0.052) (95 % interval), significantly better than"
        in body
    )
    assert "Both models were scored on the same 2,345 test images of 678 patients, over 2 findings." in body
    for low, high, sentence in (
        (-0.05, -0.01, "worse than"),
        (-0.01, 0.05, "no significant difference"),
        (np.nan, np.nan, "too few patients"),
    ):
        table = inputs.comparison.assign(low=low, high=high)
        assert sentence in Page(render(replace(inputs, comparison=table))).text("body")[0]


def test_no_previous_model_no_section() -> None:
    inputs = make(phantom=False)
    assert "Comparison with the previous model" in Page(render(inputs)).text("h2")
    headings = Page(render(replace(inputs, comparison=inputs.comparison[:0]))).text("h2")
    assert "Comparison with the previous model" not in headings
