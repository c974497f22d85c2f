"""The model card: front matter that parses, every section, data that stays text, the same bytes."""

import re
from dataclasses import replace

import pytest
from evaluated import HOSTILE
from report_inputs import make
from ruamel.yaml import YAML

from ral.evaluation.results import NOTHING, Mean
from ral.reporting.card import card
from ral.wording import escape

SECTIONS = [
    "Model overview", "Intended use", "Out of scope", "Data", "Training", "Metrics", "Calibration and thresholds",
    "Audit", "Limits",
]  # fmt: skip


def split(text: str) -> tuple[dict, str]:
    """Front matter and the rest."""
    _, front, body = text.split("---\n", 2)
    return YAML(typ="safe", pure=True).load(front), body


@pytest.fixture(scope="module")
def real() -> str:
    return card(make(phantom=False))


def test_front_matter(real: str) -> None:
    front, _ = split(real)
    assert front["license"] == "other"
    assert front["license_name"] == "unknown"
    assert "library_name" not in front  # timm opens exports only
    assert "not-a-medical-device" in front["tags"]
    assert "phantom" not in front["tags"]
    result = front["model-index"][0]["results"][0]
    assert result["dataset"] == {"type": "nih", "name": "Images of the source nih", "split": "test"}
    names = [metric["name"] for metric in result["metrics"]]
    macro = make(phantom=False).metrics.macro["ap"]
    assert names[0] == f"Macro AP (95 % interval {macro.low:.3f}–{macro.high:.3f})"
    assert result["metrics"][0]["value"] == macro.value
    assert [name.split(" (")[0] for name in names[3:]] == [
        f"CXR-LT m{x}" for x in ("AP", "AUROC", "F1", "ECE")
    ]


def test_without_a_value_there_is_no_result() -> None:
    inputs = make(phantom=False)
    names = ("ap", "auroc", "f1", "sensitivity_at_90_specificity")
    macro = Mean.model_validate(dict.fromkeys(names, NOTHING) | {"findings": 0})
    metrics = inputs.metrics.model_copy(update={"macro": macro, "cxr_lt": {"mAP": NOTHING}})
    text = card(replace(inputs, metrics=metrics))
    assert "model-index" not in split(text)[0]
    assert "| mAP | not estimable |" in text


def test_sections_and_what_they_must_say(real: str) -> None:
    assert re.findall(r"^## (.*)$", real, re.M) == SECTIONS
    for sentence in (
        "**Research software, not a medical device.**",
        "Diagnosis, triage, treatment",
        "On 2,345 test images of 678 patients, with 95 % intervals from 1,000 bootstrap resamples",
        "Not estimable: Hernia: 1 positive test images, at least 5 needed.",
        "18 gaps between a group and all other images were tested",
        "Flagged gaps:",
        "| Sex: F | 80 (40.0 %) | 80 (40.0 %) | 80 (40.0 %) |",
        "docs/reporting_checklist.md",
        'model = ral.load_model("MODEL")',
        "| Effusion | 0.3217 | 31 | 17 | 9 | 1,143 | 0.775 (0.600–0.900) |",
    ):
        assert sentence in real, sentence


def test_phantom_is_said_in_every_heading_and_only_there_is_it() -> None:
    text = card(make(phantom=True))
    front, body = split(text)
    assert all(
        line.lstrip("#").startswith(" PHANTOM: ") for line in body.splitlines() if line.startswith("#")
    )
    assert "phantom" in front["tags"]
    assert front["model-index"][0]["name"].startswith("PHANTOM: ")
    assert front["model-index"][0]["results"][0]["dataset"]["type"] == "phantom"
    assert "PHANTOM DATA" in body
    assert "PHANTOM" not in card(make(phantom=False))


def test_data_stays_text(real: str) -> None:
    front, body = split(real)
    assert front["model-index"][0]["name"] == f"Trial {HOSTILE}"
    assert "<" not in real  # in the front matter, too: not every viewer knows what it is
    assert "&#60;script&#62;" in body
    assert body.count(escape(HOSTILE)) >= 9
    # A cell that ends early would change the number of columns.
    for table in re.findall(r"(?:^\|.*\n)+", body, re.M):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(counts) == 1


@pytest.mark.parametrize(
    "title",
    [
        "a\n---\n<img src=x onerror=y>", "![x](http://h/x) **b** `c`", "'\"{{7*7}} \U0001f600 \x1b \u2028 \x85", "yes: &a *b #c",
        "TITLE-OF-THE-CARD", "名: é (ß)", "- a", " b ",
    ],
)  # fmt: skip
def test_front_matter_holds_any_title(title: str) -> None:
    inputs = make(phantom=False)
    report = inputs.params.report.model_copy(update={"title": title})
    text = card(replace(inputs, params=inputs.params.model_copy(update={"report": report})))
    front, _ = split(text)
    assert front["model-index"][0]["name"] == title
    (line,) = [line for line in text.split("---\n")[1].splitlines() if line.startswith("- name: ")]
    assert not set("<>&[]!*`{}") & set(line)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a|b", "a\\|b"),
        ("a\nb\x00c", "a b c"),
        ("[x](javascript:y)", "\\[x\\](javascript:y)"),
        ("https://a.b", "https&#58;//a.b"),
        ("WWW.a.b", "WWW&#46;a.b"),
        ("# a_b* `c` \\", "\\# a\\_b\\* \\`c\\` \\\\"),
        ("&lt; $x$", "&#38;lt; &#36;x&#36;"),
    ],
)
def test_escape(text: str, shown: str) -> None:
    assert escape(text) == shown


def test_same_bytes(real: str) -> None:
    assert card(make(phantom=False)) == real
