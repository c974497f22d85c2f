"""Choosing images, by hand: ties, unknown labels, absent classes."""

import numpy as np
import pandas as pd

from ral.explain.select import KINDS, Selection, select


def chosen(labels: list[float], logits: list[float], per_kind: int, ids: str = "abcdefghij") -> Selection:
    studies = pd.DataFrame({"image_id": list(ids[: len(labels)]), "Mass": labels})
    (selection,) = select(studies, pd.DataFrame({"Mass": logits}), per_kind)
    return selection


def names(selection: Selection) -> list[str]:
    return ["".join(image.image_id for image in getattr(selection, kind)) for kind in KINDS]


def test_by_hand() -> None:
    #                  a    b    c    d    e    f    g    h
    selection = chosen([1, 0, 1, 0, 1, 0, 1, np.nan], [3.0, 2.5, 2, 4, -1, 0, 1, 9], 2)
    assert names(selection) == ["ac", "db", "eg"]
    assert [image.rank for image in selection.hits] == [2, 4]  # d 4, a 3, b 2.5, c 2, g 1, f 0, e -1
    assert [image.rank for image in selection.false_positives] == [1, 3]
    assert [image.rank for image in selection.misses] == [7, 5]
    assert [image.logit for image in selection.misses] == [-1, 1]
    assert (selection.positives, selection.negatives, selection.unknown) == (4, 3, 1)
    assert selection.note is None


def test_ties_go_by_image_id_whatever_the_order_of_rows() -> None:
    labels, logits = [1, 1, 1, 1, 0, 0], [1.0] * 6
    assert names(chosen(labels, logits, 1, "abcdef")) == ["a", "e", "d"]
    assert names(chosen(labels, logits, 1, "dcbafe")) == ["a", "e", "d"]
    assert [image.rank for image in chosen(labels, logits, 1, "dcbafe").false_positives] == [5]


def test_few_positives_are_candidates_of_both_kinds() -> None:
    assert names(chosen([1, 1, 1, 0], [3, 2, 1, 0], 3)) == ["abc", "d", "cba"]
    assert names(chosen([1, 0], [0, 1], 3)) == ["a", "b", "a"]


def test_absent_classes_say_so() -> None:
    nothing = chosen([0, np.nan, 0], [1, 2, 3], 3)
    assert names(nothing) == ["", "", ""]
    assert "No test image is known to have" in str(nothing.note)
    everybody = chosen([1, 1, np.nan], [1, 2, 3], 1)
    assert names(everybody) == ["b", "", "a"]
    assert "no false positives" in str(everybody.note)
    assert names(chosen([np.nan] * 2, [1, 2], 1)) == ["", "", ""]
