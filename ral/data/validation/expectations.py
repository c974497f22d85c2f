"""Builds the expectations on a source's raw rows from its layout, and those on drift."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Literal

import great_expectations.expectations as gxe
import pandas as pd
from great_expectations.expectations.expectation import Expectation

from ral.config.data import DriftConfig
from ral.data.sources.base import OLDEST, DelimitedLabels, Layout, parse_all
from ral.data.validation import drift
from ral.data.validation.result import CheckKind
from ral.labels import NO_FINDING
from ral.suggest import nearest

IMAGE_PRESENT = "image is present"

# Great Expectations' word for error is critical.
Severity = Literal["critical", "warning"]

ACCEPT = "If the new delivery is right, accept it: `python -m ral.data.baseline profile`."


@dataclass(frozen=True)
class CheckMeta:
    """What people need to know about an expectation; its `meta`.

    Attributes:
        check: name, as a statement that holds for good data.
        remedy: what to do about rows that fail.
        shown: the column that it is shown under; "" for the checked columns.
        kind: what it is about.
        observed: what was measured, where a list of rows does not say it.
    """

    check: str
    remedy: str
    shown: str
    kind: CheckKind = "table"
    observed: str = ""


def raw_expectations(layout: Layout, missing_images: str) -> list[Expectation]:
    """Expectations on the rows and their derived columns; critical ones stop the run, warnings go to the report.

    `meta` of each is a `CheckMeta`.
    """
    return [
        *_id_checks(layout),
        *_label_checks(layout),
        *_patient_checks(layout),
        *_person_checks(layout),
        *_vocabulary_checks(layout),
        *_file_checks(layout, must_exist=missing_images == "fail"),
    ]


_MATCHES, _BETWEEN = gxe.ExpectColumnValuesToMatchRegex, gxe.ExpectColumnValuesToBeBetween
_IN_SET, _NULL = gxe.ExpectColumnValuesToBeInSet, gxe.ExpectColumnValuesToBeNull


def _expect(
    layout: Layout, kind: Callable[..., Expectation], name: str, severity: Severity, remedy: str, role: str = "",
    shown: str = "", **arguments: object,
) -> Expectation:  # fmt: skip
    """An expectation; its remedy names the key of params.yaml that describes the column of `role`, if one does."""
    remedy = " ".join(filter(None, [remedy, layout.hints.get(role)]))
    meta = CheckMeta(name, remedy, shown or str(arguments.get("column", "")))
    return kind(**arguments, severity=severity, meta=_content(meta))


def _content(meta: CheckMeta) -> dict[str, str]:
    """A meta as JSON, without what has its default."""
    return {
        field.name: getattr(meta, field.name)
        for field in fields(meta)
        if getattr(meta, field.name) != field.default
    }


def _id_checks(layout: Layout) -> Iterator[Expectation]:
    yield _expect(
        layout, _MATCHES, layout.image_check, "critical",
        "Correct the image id in that row.", "image", column=layout.image, regex=layout.image_pattern,
    )  # fmt: skip
    yield _expect(
        layout, _NULL, "image ids are unique", "critical", "Keep one row per image.", "image",
        shown=layout.image, column="image_repeated",
    )  # fmt: skip
    yield _expect(
        layout, _NULL, "ids are in one Unicode form", "critical",
        "Write them in normal form C: two forms of a name look alike and count as two patients.",
        shown="ids", column="id_problem",
    )  # fmt: skip


def _label_checks(layout: Layout) -> Iterator[Expectation]:
    labels = layout.labels
    shown = labels.column if isinstance(labels, DelimitedLabels) else "labels"
    if isinstance(labels, DelimitedLabels):
        allowed = f"Allowed, joined by {labels.between}: {', '.join(word for word in labels.words if word)}."
    else:
        allowed = "Allowed in a label column: 1, 0, -1 (uncertain) or nothing."
    yield _expect(
        layout, _NULL, "labels are in the vocabulary", layout.vocabulary, allowed, "labels",
        shown=shown, column="label_problem",
    )  # fmt: skip
    yield _expect(
        layout, _NULL, f"{NO_FINDING} stands alone", layout.contradiction,
        f"Remove {NO_FINDING} from rows that have a finding."
        + ("" if layout.contradiction == "critical" else " The findings are used, not the word."),
        "no_finding",
        shown=shown, column="contradiction",
    )  # fmt: skip


def _patient_checks(layout: Layout) -> Iterator[Expectation]:
    if layout.patients_known:
        yield _expect(
            layout, _NULL, "patient ids do not look alike", "critical" if layout.one_spelling else "warning",
            "Write a patient's id in one way: one person under two ids could both train and test.",
            shown="patient ids", column="patient_lookalike",
        )  # fmt: skip
    yield _expect(
        layout, _NULL, "an image belongs to one patient", "warning",
        "One person may have two ids, or a file was copied under a wrong name. split.same_image says what becomes of "
        "such patients.",
        shown="image files", column="same_image",
    )  # fmt: skip
    if layout.follow_up:
        yield _expect(
            layout, _MATCHES, "follow-up is a number", "critical", "Write it as a whole number from 0.",
            "follow_up",
            column=layout.follow_up, regex=r"^[0-9]+(?:\.0*)?\Z",
        )  # fmt: skip
        yield _expect(
            layout, gxe.ExpectCompoundColumnsToBeUnique, "follow-ups of a patient are distinct", "warning",
            "Number a patient's images 0, 1, 2, …", column_list=[layout.patient, layout.follow_up],
        )  # fmt: skip
    if layout.patients_known:
        yield _expect(
            layout, _MATCHES, layout.patient_check, "critical",
            layout.patient_remedy, "patient", column=layout.patient, regex=layout.patient_pattern,
        )  # fmt: skip
    else:
        yield _expect(
            layout, _IN_SET, "patients are known", "warning",
            "The source has no patient ids: each image counts as a patient, so images of one person may be in two "
            "splits, and intervals are too narrow.", "patient", column="patient_known", value_set=[1],
        )  # fmt: skip


def _person_checks(layout: Layout) -> Iterator[Expectation]:
    if layout.age:
        yield _expect(
            layout, _MATCHES, "age is a number", "critical", "Write the age in whole years.",
            "age", column=layout.age, regex=layout.age_pattern,
        )  # fmt: skip
        yield _expect(
            layout, _BETWEEN, "age is possible", "warning", "Such ages are taken as unknown.",
            shown=layout.age, column="age_as_number", min_value=0, max_value=OLDEST,
        )  # fmt: skip
    if layout.age and layout.follow_up:
        yield _expect(
            layout, _BETWEEN, "ages rise with the follow-ups", "warning",
            "Correct the age or the follow-up number; neither is used for the split.",
            shown=layout.age, column="age_step", min_value=0,
        )  # fmt: skip
    if layout.sex:
        words = list(layout.sexes)
        allowed = " or ".join(word for word in words if word)
        yield _expect(
            layout, _IN_SET, f"sex is {allowed}", "critical", f"Write {allowed}.",
            "sex", column=layout.sex, value_set=words,
        )  # fmt: skip
        yield _expect(
            layout, _BETWEEN, "a patient has one sex", "warning",
            "Two persons may share an id, or a row is wrong. The rows are used as they are.",
            shown=layout.sex, column="sexes_of_patient", max_value=1,
        )  # fmt: skip


def _vocabulary_checks(layout: Layout) -> Iterator[Expectation]:
    if layout.view:
        views = [view for view in layout.views if view]
        yield _expect(
            layout, _IN_SET, "view is known", "critical", f"Write one of {', '.join(views)}.",
            "view", column=layout.view, value_set=list(layout.views),
        )  # fmt: skip
    if layout.split:
        yield _expect(
            layout, _IN_SET, "official split is train, val or test", "critical", "Write train, val or test.",
            "split", column=layout.split, value_set=["train", "val", "test", ""],
        )  # fmt: skip
    if layout.photometric:
        yield _expect(
            layout, _IN_SET, "photometric interpretation is known", layout.vocabulary,
            "Write MONOCHROME1 (high values are dark), MONOCHROME2, or nothing."
            + ("" if layout.vocabulary == "critical" else " Such images count as MONOCHROME2."),
            "photometric", column=layout.photometric, value_set=["MONOCHROME1", "MONOCHROME2", ""],
        )  # fmt: skip


def _file_checks(layout: Layout, must_exist: bool) -> Iterator[Expectation]:
    if layout.path:
        yield _expect(
            layout, gxe.ExpectColumnValuesToNotMatchRegex, "image is inside the data folder", "critical",
            "Write the path below data.root, without `..`.",
            "path", column=layout.path, regex=r"^/|^[A-Za-z]:|(?:^|[/\\])\.\.(?:[/\\]|$)",
        )  # fmt: skip
        yield _expect(
            layout, _NULL, "an image file has one row", "critical", "Keep one row per image file.", "path",
            shown=layout.path, column="file_repeated",
        )  # fmt: skip
    yield _expect(
        layout, gxe.ExpectColumnValuesToNotBeNull, IMAGE_PRESENT, "critical" if must_exist else "warning",
        "Add the images, or set data.missing_images to drop to go on without those rows."
        if must_exist else "Those rows are left out.",
        ("path" if layout.path else "image") if must_exist else "",
        shown=layout.path or layout.image, column="image_bytes",
    )  # fmt: skip
    yield _expect(
        layout, _BETWEEN, "image is not empty", "critical", "Get that image again from its owner.",
        column="image_bytes", min_value=1,
    )  # fmt: skip


def drift_expectations(limits: DriftConfig, observed: drift.Beyond) -> list[Expectation]:
    """Expectations on the rows of `ral.data.validation.drift.compare`.

    Args:
        limits: the limits.
        observed: what is beyond them, from `drift.describe`.
    """

    between: Callable[..., Expectation] = _BETWEEN

    def check(name: str, severity: Severity, column: str, **bounds: float) -> Expectation:
        meta = CheckMeta(name, ACCEPT, "accepted profile", "drift", getattr(observed, column))
        return between(column=column, severity=severity, meta=_content(meta), **bounds)

    return [
        check("no column or label drifted far", "critical", "psi", max_value=limits.fail),
        check("no column or label drifted", "warning", "psi", max_value=limits.warn),
        check(
            "prevalences are near the accepted ones", "warning", "ratio",
            min_value=1 / limits.prevalence, max_value=limits.prevalence,
        ),
        check("no rows were lost", "warning", "rows", min_value=limits.rows),
    ]  # fmt: skip


def suggest_closest(samples: list[str], layout: Layout) -> str:
    """Hint for rows whose labels are not in the vocabulary: "Did you mean `Mass` for 'Masses'? " or ""."""
    if not isinstance(layout.labels, DelimitedLabels):
        return ""
    words = [word for word in layout.labels.words if word]
    hints: dict[str, str] = {}
    for text in samples:
        (parsed,) = parse_all(pd.Index([text]), layout.labels)
        for word in parsed or []:
            closest = [] if word in layout.labels.words else nearest(word, words)
            if closest:
                hints[word] = f"Did you mean `{closest[0]}` for {word!r}? "
    return "".join(hints.values())
