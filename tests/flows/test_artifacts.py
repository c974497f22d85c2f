"""What a run's page shows is text."""

from evaluated import HOSTILE

from flows.artifacts import decision_text, shown


def test_a_decision_is_text_in_markdown() -> None:
    rule = {
        "rule": f"tail {HOSTILE}",
        "result": "holds",
        "sentence": "![x](http://h/x) <img src=x>\n# Not a title",
    }
    text = decision_text({"sentence": f"HOLD: {HOSTILE}", "rules": [rule], "notice": "Research"})
    assert "<" not in text
    assert "://" not in text
    assert [line[:2] for line in text.splitlines()] == ["**", "", "- ", "", "Re"]
    assert "\\!\\[x\\](http&#58;//h/x) &#60;img src=x&#62; \\# Not a title" in text


def test_cells_of_tables_are_text_in_markdown() -> None:
    (row,) = shown(
        [
            {
                "finding": HOSTILE,
                "column": "![x](http://h/x)",
                "ap": "-0.5",
                "rows": 3,
                "kept": "Pleural_Thickening",
            }
        ]
    )
    assert "<" not in row["finding"]
    assert row["column"] == "\\!\\[x\\](http&#58;//h/x)"
    assert (row["ap"], row["rows"], row["kept"]) == ("-0.5", 3, "Pleural_Thickening")
