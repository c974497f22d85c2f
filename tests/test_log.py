"""Log lines: text for people, JSON for the flow, progress in both."""

import io
import logging
import subprocess
import sys

from ral.log import Line, parse
from ral.progress import Progress

SCRIPT = """
import logging, os, sys
from ral.log import configure
configure()
logging.getLogger("ral.training").info("epoch %d", 3)
logging.getLogger("tasks.validate").warning('3 rows failed "image is present"\\nsecond line')
logging.getLogger("somebody.else").info("not shown")
logging.getLogger("loud").setLevel(logging.DEBUG)
logging.getLogger("loud").info("not shown either")
logging.getLogger("somebody.else").warning("shown")
"""


def lines(**variables: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=dict(variables)
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_people_read_time_level_and_message() -> None:
    written = lines()
    assert [line.split(maxsplit=1)[1] for line in (written[0], written[1], written[3])] == [
        "INFO    epoch 3",
        'WARNING 3 rows failed "image is present"',
        "WARNING shown",
    ]


def test_the_flow_reads_what_was_written() -> None:
    assert [parse(line) for line in lines(RAL_LOG_FORMAT="json")] == [
        Line(logging.INFO, "epoch 3", None),
        Line(logging.WARNING, '3 rows failed "image is present"\nsecond line', None),
        Line(logging.WARNING, "shown", None),
    ]


def test_other_text_is_no_log_line() -> None:
    for text in (
        "",
        "Running stage 'train':",
        '{"level": "LOUD", "message": "x"}',
        '{"level": "INFO"}',
        '{"level"',
    ):
        assert parse(text) is None


def test_progress_is_a_log_line_where_there_is_no_terminal(caplog) -> None:
    caplog.set_level(logging.INFO, "ral")
    with Progress("reading images", 400, "images", io.StringIO()) as progress:
        progress._last_line -= 60
        progress.add(100, "note")
    first, *_ = caplog.records
    assert first.progress == {"done": 100, "total": 400, "unit": "images"}
    assert first.getMessage().startswith("reading images: 25 % (100 of 400 images), ")
    assert first.getMessage().endswith(", note")
