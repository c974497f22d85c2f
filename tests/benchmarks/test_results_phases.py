"""The sections of the study's page on refitted classifiers and on more epochs, on logits with known answers."""

import pandas as pd
import pytest
from study_inputs import CONFIG, StudyInputs

from benchmarks.study.results import write


@pytest.fixture(scope="module")
def refitted(tmp_path_factory: pytest.TempPathFactory) -> StudyInputs:
    """A study with a second phase on RAL and with more epochs, and its page."""
    inputs = StudyInputs(tmp_path_factory.mktemp("study"))
    for fold in range(2):
        for arm, strength in (("ral", 1.5), ("bce", 1.5)):
            inputs.run("main", arm, fold, strength)
        for method, strength in (("crt", 1.5), ("smote", 4.0), ("virtual", -1.0)):
            inputs.run("second_phase", f"ral+{method}", fold, strength, seconds=3.25)
        for arm, strength in (("ral", 1.0), ("bce", 4.0)):
            inputs.run("epochs", arm, fold, strength, epochs=24)
    inputs.run("second_phase", "bce+crt", 0, 1.5)
    # Of another backbone: in no table of these sections.
    inputs.run("epochs", "bce", 0, 1.0, epochs=24, backbone="resnet50")
    inputs.write()
    write(inputs.state, inputs.out, CONFIG)
    return inputs


def part_of(text: str, title: str) -> str:
    """A section of the page."""
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_second_phase_is_compared_with_the_own_classifier_and_with_crt(refitted: StudyInputs) -> None:
    text = part_of((refitted.out / "RESULTS.md").read_text(), "Second phase")
    lines = [line for line in text.splitlines() if line.startswith("| RAL |")]
    rows = {cells[1]: cells for cells in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)}
    assert list(rows) == ["own classifier", "crt", "smote", "virtual"]
    assert [rows[name][-1] for name in rows] == ["–", "3.2", "3.2", "3.2"]
    assert rows["own classifier"][5:9] == ["–"] * 4
    assert rows["crt"][7:9] == ["–"] * 2
    # The values that the logits were made with: smote is above all, virtual below.
    assert (
        "- RAL, macro AP against its own classifier: better: smote; worse: virtual; no difference shown: crt."
        in text
    )
    assert "- RAL, macro AP against cRT: better: smote; worse: virtual; no difference shown: none." in text
    table = pd.read_csv(refitted.out / "results" / "differences.csv")
    table = table[
        (table["table"] == "second_phase") & (table["metric"] == "ap") & (table["level"] == "macro")
    ]
    table = table[table["arm"].str.startswith("ral")]
    own = next(line for line in text.splitlines() if line.startswith("| BCE | own classifier |"))
    assert own.split("|")[3].strip() == "0"  # its numbers are of the folds of its methods
    assert list(zip(table["arm"], table["baseline"], table["folds"], strict=True)) == [
        ("ral+crt", "ral", 2), ("ral+smote", "ral", 2), ("ral+smote", "ral+crt", 2), ("ral+virtual", "ral", 2),
        ("ral+virtual", "ral+crt", 2),
    ]  # fmt: skip
    row = table.iloc[1]
    assert rows["smote"][5].startswith(f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})")


def test_the_page_says_whether_the_order_changes_with_more_epochs(refitted: StudyInputs) -> None:
    text = part_of((refitted.out / "RESULTS.md").read_text(), "More epochs")
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"
    ]
    assert [row[:3] for row in cells[2:]] == [
        ["RAL − BCE", "12", "0, 1"], ["RAL − BCE", "24", "0, 1"],
        ["RAL: 24 − 12 epochs", "–", "0, 1"], ["BCE: 24 − 12 epochs", "–", "0, 1"],
    ]  # fmt: skip
    table = pd.read_csv(refitted.out / "results" / "differences.csv")
    table = table[(table["table"] == "epochs") & (table["metric"] == "ap") & (table["level"] == "macro")]
    found = {(row["arm"], row["baseline"]): row["difference"] for row in table.to_dict("records")}
    assert found["ral+24 epochs", "bce+24 epochs"] < -0.05  # as the logits were made
    assert found["bce+24 epochs", "bce"] > 0.05
    assert cells[5][3].startswith("+")  # on the selection set, on which the longer BCE is better as well
    assert cells[3][4].startswith(f"{found['ral+24 epochs', 'bce+24 epochs']:+.3f} (")
    few = "BCE, RAL" if found["ral", "bce"] < 0 else "RAL, BCE"
    many = "the same" if few == "BCE, RAL" else "BCE, RAL"
    assert f"- Arms by macro AP on folds 0, 1, the best first: with 12 epochs {few}; with 24 {many}." in text
