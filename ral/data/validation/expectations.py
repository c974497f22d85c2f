"""Builds the expectations on a source's raw rows from its layout, and the derived columns that they check."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import great_expectations.expectations as gxe
import numpy as np
import pandas as pd

from ral.config.data import DriftConfig
from ral.data.sources.base import (
    LABEL_VALUES,
    OLDEST,
    ColumnLabels,
    DelimitedLabels,
    Layout,
    parse_all,
    rows_with_meaning,
)
from ral.data.tables.lookalike_ids import lookalikes
from ral.labels import NO_FINDING, SUPPORT_DEVICES
from ral.suggest import nearest

IMAGE_PRESENT = "image is present"

ACCEPT = "If the new delivery is right, accept it: `python -m ral.data.baseline profile`."


@dataclass(frozen=True)
class RowFacts:
    """What is known about the rows of a partition from the whole table and the image files; one entry per row.

    Attributes:
        image_bytes: float64, size of the row's image file, NaN without one.
        id_repeated: bool, whether another row has the same image id.
        file_repeated: bool, whether another row has the same file; all false if the table has no file paths.
        same_image: text, the image of another patient with the same bytes; null if there is none.
    """

    image_bytes: np.ndarray
    id_repeated: np.ndarray
    file_repeated: np.ndarray
    same_image: "pd.Series[str]"


def derive_check_columns(raw: pd.DataFrame, layout: Layout, row_facts: RowFacts) -> pd.DataFrame:
    """Add the columns that the expectations check to the raw rows.

    Added: image_bytes (null without an image), image_repeated (the image id, null if it is unique), file_repeated (the
    path, likewise), same_image, patient_lookalike (ids that look like the patient's), age_as_number (null if
    it is not a number), label_problem (words or cells that are not labels), contradiction (findings beside No
    Finding), id_problem, sexes_of_patient, age_step (years since the patient's previous follow-up),
    patient_known.

    Args:
        raw: all rows of some patients, in the order of the table.
        layout: meaning of the columns.
        row_facts: what is known about these rows from the whole table and the image files.
    """
    image, patient = raw[layout.image], raw[layout.patient]
    table = raw.assign(
        image_bytes=row_facts.image_bytes,
        image_repeated=image.where(row_facts.id_repeated),
        same_image=row_facts.same_image.array,
        patient_lookalike=lookalikes(patient),
        label_problem=label_problems(raw, layout.labels),
        contradiction=contradictions(raw, layout.labels),
        id_problem=_id_problems(image).fillna(_id_problems(patient)),
        patient_known=1 if layout.patients_known else 0,
    )
    if layout.path:
        table["file_repeated"] = raw[layout.path].where(row_facts.file_repeated & (raw[layout.path] != ""))
    if layout.age:
        table["age_as_number"] = _numbers(raw[layout.age])
    if layout.sex:
        known = raw[layout.sex].map(dict(layout.sexes))
        table["sexes_of_patient"] = patient.map(known.groupby(patient).nunique()).astype("float64")
    if layout.follow_up and layout.age:
        order = _numbers(raw[layout.follow_up])
        ordered = pd.DataFrame(
            {"patient": patient, "order": order, "age": table["age_as_number"]}
        ).sort_values(["patient", "order"], kind="stable")
        possible = ordered["age"].where(ordered["age"].between(0, OLDEST))
        table["age_step"] = possible.groupby(ordered["patient"]).diff()
    return table


def _numbers(texts: pd.Series) -> pd.Series:
    """Parse texts as numbers; always float64, whatever the rows contain."""
    return pd.to_numeric(texts, errors="coerce").astype("float64")


def label_problems(raw: pd.DataFrame, labels: DelimitedLabels | ColumnLabels) -> pd.Series:
    """For each row, the words (or column=text) that are not labels, joined by commas; null if all are."""
    if isinstance(labels, DelimitedLabels):
        codes, texts = pd.factorize(raw[labels.column])
        unknown = [
            "not of the form expected"
            if words is None
            else ", ".join(repr(word) for word in words if word not in labels.words) or None
            for words in parse_all(texts, labels)
        ]
        return pd.Series(np.array(unknown, dtype=object)[codes], index=raw.index, dtype="str")
    named = [*labels.columns.values(), *([labels.no_finding] if labels.no_finding else [])]
    problems: dict[int, list[str]] = {}
    for column in dict.fromkeys(named):
        for row in np.flatnonzero(~raw[column].isin(LABEL_VALUES)):
            problems.setdefault(int(row), []).append(f"{column}={raw[column].iloc[row]!r}")
    return _join_by_row(problems, raw.index)


def contradictions(raw: pd.DataFrame, labels: DelimitedLabels | ColumnLabels) -> pd.Series:
    """For each row, the findings listed beside No Finding; null if there are none."""
    if isinstance(labels, DelimitedLabels):
        codes, texts = pd.factorize(raw[labels.column])
        beside_none = []
        for words in parse_all(texts, labels):
            # Words that map to no finding (such as an old scar) and support devices do not contradict No Finding.
            beside = [w for w in words or [] if set(labels.words.get(w, ())) - {SUPPORT_DEVICES, NO_FINDING}]
            beside_none.append(
                ", ".join(beside) if beside and not labels.none.isdisjoint(words or []) else None
            )
        return pd.Series(np.array(beside_none, dtype=object)[codes], index=raw.index, dtype="str")
    columns_beside: dict[int, list[str]] = {}
    if labels.no_finding is not None:
        healthy = rows_with_meaning(raw, labels.no_finding, "present")
        for finding, column in labels.columns.items():
            if finding not in (SUPPORT_DEVICES, NO_FINDING):
                for row in np.flatnonzero(healthy & rows_with_meaning(raw, column, "present")):
                    columns_beside.setdefault(int(row), []).append(column)
    return _join_by_row(columns_beside, raw.index)


def _join_by_row(words_by_row: dict[int, list[str]], index: pd.Index) -> pd.Series:
    """One text per row from lists by row position; null where there is no list."""
    texts = np.full(len(index), None, dtype=object)
    for row, words in words_by_row.items():
        texts[row] = ", ".join(words)
    return pd.Series(texts, index=index, dtype="str")


def _id_problems(ids: pd.Series) -> pd.Series:
    """Ids that are not in Unicode normal form C (NFC), and may look the same as others; else null."""
    normal = ids.str.normalize("NFC")
    return ids.where(ids != normal)


def raw_expectations(layout: Layout, missing_images: str) -> list[Any]:
    """Expectations on the rows and their derived columns; critical ones stop the run, warnings go to the report.

    `meta` of each has a short name, the column it is shown under and the remedy.
    """
    labels = layout.labels
    shown = labels.column if isinstance(labels, DelimitedLabels) else "labels"
    if isinstance(labels, DelimitedLabels):
        allowed = f"Allowed, joined by {labels.between}: {', '.join(word for word in labels.words if word)}."
    else:
        allowed = "Allowed in a label column: 1, 0, -1 (uncertain) or nothing."
    checks: list[Any] = []

    def check(
        kind: Callable[..., Any], name: str, severity: str, remedy: str, role: str = "", shown: str = "",
        **kwargs: Any,
    ) -> None:  # fmt: skip
        # A remedy names the key of params.yaml where one describes the column.
        remedy = " ".join(filter(None, [remedy, layout.hints.get(role)]))
        meta = {"check": name, "remedy": remedy, "shown": shown or kwargs.get("column", "")}
        checks.append(kind(**kwargs, severity=severity, meta=meta))

    matches, between = gxe.ExpectColumnValuesToMatchRegex, gxe.ExpectColumnValuesToBeBetween
    in_set, null = gxe.ExpectColumnValuesToBeInSet, gxe.ExpectColumnValuesToBeNull
    check(
        matches, layout.image_check, "critical",
        "Correct the image id in that row.", "image", column=layout.image, regex=layout.image_pattern,
    )  # fmt: skip
    check(
        null, "image ids are unique", "critical", "Keep one row per image.", "image",
        shown=layout.image, column="image_repeated",
    )  # fmt: skip
    check(
        null, "ids are in one Unicode form", "critical",
        "Write them in normal form C: two forms of a name look alike and count as two patients.",
        shown="ids", column="id_problem",
    )  # fmt: skip
    check(
        null, "labels are in the vocabulary", layout.vocabulary, allowed, "labels",
        shown=shown, column="label_problem",
    )  # fmt: skip
    check(
        null, f"{NO_FINDING} stands alone", layout.contradiction,
        f"Remove {NO_FINDING} from rows that have a finding."
        + ("" if layout.contradiction == "critical" else " The findings are used, not the word."),
        "no_finding",
        shown=shown, column="contradiction",
    )  # fmt: skip
    if layout.patients_known:
        check(
            null, "patient ids do not look alike", "critical" if layout.one_spelling else "warning",
            "Write a patient's id in one way: one person under two ids could both train and test.",
            shown="patient ids", column="patient_lookalike",
        )  # fmt: skip
    check(
        null, "an image belongs to one patient", "warning",
        "One person may have two ids, or a file was copied under a wrong name. split.same_image says what becomes of "
        "such patients.",
        shown="image files", column="same_image",
    )  # fmt: skip
    if layout.follow_up:
        check(
            matches, "follow-up is a number", "critical", "Write it as a whole number from 0.",
            "follow_up",
            column=layout.follow_up, regex=r"^[0-9]+(?:\.0*)?\Z",
        )  # fmt: skip
        check(
            gxe.ExpectCompoundColumnsToBeUnique, "follow-ups of a patient are distinct", "warning",
            "Number a patient's images 0, 1, 2, …", column_list=[layout.patient, layout.follow_up],
        )  # fmt: skip
    if layout.patients_known:
        check(
            matches, layout.patient_check, "critical",
            layout.patient_remedy, "patient", column=layout.patient, regex=layout.patient_pattern,
        )  # fmt: skip
    else:
        check(
            in_set, "patients are known", "warning",
            "The source has no patient ids: each image counts as a patient, so images of one person may be in two "
            "splits, and intervals are too narrow.", "patient", column="patient_known", value_set=[1],
        )  # fmt: skip
    if layout.age:
        check(
            matches, "age is a number", "critical", "Write the age in whole years.",
            "age", column=layout.age, regex=layout.age_pattern,
        )  # fmt: skip
        check(
            between, "age is possible", "warning", "Such ages are taken as unknown.",
            shown=layout.age, column="age_as_number", min_value=0, max_value=OLDEST,
        )  # fmt: skip
    if layout.age and layout.follow_up:
        check(
            between, "ages rise with the follow-ups", "warning",
            "Correct the age or the follow-up number; neither is used for the split.",
            shown=layout.age, column="age_step", min_value=0,
        )  # fmt: skip
    if layout.sex:
        words = list(layout.sexes)
        allowed_sexes = " or ".join(word for word in words if word)
        check(
            in_set, f"sex is {allowed_sexes}", "critical", f"Write {allowed_sexes}.",
            "sex", column=layout.sex, value_set=words,
        )  # fmt: skip
        check(
            between, "a patient has one sex", "warning",
            "Two persons may share an id, or a row is wrong. The rows are used as they are.",
            shown=layout.sex, column="sexes_of_patient", max_value=1,
        )  # fmt: skip
    if layout.view:
        views = [view for view in layout.views if view]
        check(
            in_set, "view is known", "critical", f"Write one of {', '.join(views)}.",
            "view", column=layout.view, value_set=list(layout.views),
        )  # fmt: skip
    if layout.split:
        check(
            in_set, "official split is train, val or test", "critical", "Write train, val or test.",
            "split", column=layout.split, value_set=["train", "val", "test", ""],
        )  # fmt: skip
    if layout.photometric:
        check(
            in_set, "photometric interpretation is known", layout.vocabulary,
            "Write MONOCHROME1 (high values are dark), MONOCHROME2, or nothing."
            + ("" if layout.vocabulary == "critical" else " Such images count as MONOCHROME2."),
            "photometric", column=layout.photometric, value_set=["MONOCHROME1", "MONOCHROME2", ""],
        )  # fmt: skip
    if layout.path:
        check(
            gxe.ExpectColumnValuesToNotMatchRegex, "image is inside the data folder", "critical",
            "Write the path below data.root, without `..`.",
            "path", column=layout.path, regex=r"^/|^[A-Za-z]:|(?:^|[/\\])\.\.(?:[/\\]|$)",
        )  # fmt: skip
        check(
            null, "an image file has one row", "critical", "Keep one row per image file.", "path",
            shown=layout.path, column="file_repeated",
        )  # fmt: skip
    must = missing_images == "fail"
    check(
        gxe.ExpectColumnValuesToNotBeNull, IMAGE_PRESENT, "critical" if must else "warning",
        "Add the images, or set data.missing_images to drop to go on without those rows."
        if must else "Those rows are left out.",
        ("path" if layout.path else "image") if must else "",
        shown=layout.path or layout.image, column="image_bytes",
    )  # fmt: skip
    check(
        between, "image is not empty", "critical", "Get that image again from its owner.",
        column="image_bytes", min_value=1,
    )  # fmt: skip
    return checks


def drift_expectations(limits: DriftConfig, descriptions: dict[str, str]) -> list[Any]:
    """Expectations on the rows of `ral.data.validation.drift.compare`; `descriptions` come from its `describe`."""
    between = gxe.ExpectColumnValuesToBeBetween

    def check(name: str, severity: Any, column: str, **bounds: Any) -> Any:
        meta = {"check": name, "remedy": f"{descriptions[column]}. {ACCEPT}", "shown": "accepted profile"}
        return between(column=column, severity=severity, meta=meta, **bounds)

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
