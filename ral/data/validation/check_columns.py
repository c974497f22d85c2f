"""Columns that the expectations check and that are derived from a source's raw rows."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

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
