"""Confusion between findings, against results computed by hand."""

import numpy as np
import pandas as pd

from ral.evaluation.confusion import confusion

N = np.nan


def cell(table: pd.DataFrame, finding: str, taken_for: str) -> list:
    row = table[(table["finding"] == finding) & (table["taken_for"] == taken_for)]
    assert len(row) == 1
    return row[["images", "times", "share", "share_without"]].iloc[0].tolist()


def test_by_hand() -> None:
    labels = pd.DataFrame({"A": [1, 1, 0, 0, N], "B": [0, 0, 0, 1, 0], "C": [0, N, 1, 0, 0]})
    # Ranks of the logits within each finding, low to high: all raw logits of A are above those of B, which
    # must not matter.
    logits = pd.DataFrame(
        {"A": [101, 103, 100, 102, 104], "B": [4, 1, 3, 2, 0], "C": [0.1, 0.4, 0.2, 0.3, 0.0]},
    )
    # Normalized ranks × 4:  A 1 3 0 2 4;  B 4 1 3 2 0;  C 1 4 2 3 0. Highest of each image: B, C, B, C, A.
    table = confusion(labels, logits, 1)
    assert len(table) == 6
    assert cell(table, "A", "B") == [2, 1, 0.5, 1.0]  # images 0 and 1; image 2 has neither
    assert cell(table, "A", "C") == [1, 0, 0.0, 1.0]  # image 1: C is unknown; image 3 has neither
    assert cell(table, "B", "C") == [1, 1, 1.0, 0.0]
    assert cell(table, "C", "A") == [1, 0, 0.0, 0.0]
    assert cell(table, "C", "B") == [1, 1, 1.0, 0.5]


def test_ties_and_classes_without_images() -> None:
    labels = pd.DataFrame({"A": [1.0, 1], "B": [0.0, 0], "C": [N, N]})
    logits = pd.DataFrame({"A": [0.0, 0], "B": [0.0, 0], "C": [0.0, 0]})
    table = confusion(labels, logits, 1)
    assert cell(table, "A", "B")[:3] == [2, 2, 1.0]  # all tie for the last rank, so all count
    images, times, share, without = cell(table, "A", "C")
    assert (images, times) == (0, 0)
    assert np.isnan(share)
    assert np.isnan(without)
