"""What README and the recipes say of the loss study are the numbers of differences.csv."""

import re

import pandas as pd
import pytest
from conftest import ROOT

from benchmarks.study.groups import label
from ral.wording import difference

TABLE = pd.read_csv(ROOT / "docs/results/differences.csv")
NUMBERS = re.compile(r"[+-]\d\.\d{3} \([+-]\d\.\d{3} to [+-]\d\.\d{3}\)")


def of(row: dict[str, float]) -> str:
    """A difference as the pages write it."""
    return difference(row["difference"], row["low"], row["high"])


def text(path: str) -> str:
    """A file with its lines joined."""
    return " ".join((ROOT / path).read_text().replace("#", " ").split())


def headline() -> dict[tuple[str, str], str]:
    """Arm and baseline of the statements -> what README has to say, in either direction."""
    found = TABLE[(TABLE["table"] == "headline") & (TABLE["metric"] == "ap")].set_index(
        ["arm", "baseline", "level"]
    )
    pairs = dict.fromkeys((arm, baseline) for arm, baseline, _ in found.index)
    return {
        (arm, baseline): f"{label(arm)} − {label(baseline)}: "
        + ", ".join(
            f"{level} AP {of(found.loc[arm, baseline, level].to_dict())}" for level in ("macro", "tail")
        )
        for arm, baseline in pairs
    }


def test_readme_has_the_statements_of_the_study() -> None:
    expected, readme = headline(), text("README.md")
    assert {("ral", "reference"), ("ral", "bce")} <= set(expected)
    for (arm, baseline), statement in expected.items():
        mirrored = expected.get((baseline, arm), statement)
        assert statement in readme or mirrored in readme, f"README.md has to say: {statement}"


def test_readme_names_first_what_is_best_on_the_selection_set() -> None:
    (best,) = {arm for arm, baseline in headline() if baseline == "ral"}
    section = text("README.md").partition("Which loss Measured")[2]
    assert re.search(r"- \*\*(.+?)\*\*", section)[1] == label(best)  # type: ignore[index]


@pytest.mark.parametrize(
    "path", ["README.md", *(f"recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml"))]
)
def test_every_difference_with_an_interval_is_one_of_the_study(path: str) -> None:
    known = {of(row) for row in TABLE.to_dict("records")}
    numbers = NUMBERS.findall(text(path))
    assert len(numbers) >= 2
    assert not [one for one in numbers if one not in known]
