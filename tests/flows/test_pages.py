"""What a run's page shows is text."""

from evaluated import HOSTILE

from flows.pages import decision_text


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
