"""The ledger: hash chain, truncated last lines, one entry per decision, concurrent writers."""

import contextlib
import json
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest

from ral.errors import UserError
from ral.release.ledger import FIRST, Ledger


def test_entries_are_chained_and_read_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "state")
    assert ledger.entries() == []
    first = ledger.append("decision", run_id="a", decision="HOLD")
    second = ledger.append("promote", version="v0.1.0", by="Ada", reason="“first” model")
    assert ledger.entries() == [first, second]
    assert first["before"] == FIRST
    assert second["before"] != FIRST
    assert [entry["number"] for entry in ledger.entries()] == [1, 2]
    assert ledger.path.stat().st_mode & 0o077 == 0


def test_a_decision_of_the_same_run_is_written_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    first = ledger.append("decision", once="run_id", run_id="a", decision="HOLD")
    assert ledger.append("decision", once="run_id", run_id="a", decision="PROMOTE") == first
    ledger.append("decision", once="run_id", run_id="b", decision="HOLD")
    ledger.append("promote", once="run_id", run_id="a")
    assert len(ledger.entries()) == 3


@pytest.mark.parametrize("harm", ["change", "remove", "swap", "garbage"])
def test_tampering_is_noticed_and_nothing_is_added(tmp_path: Path, harm: str) -> None:
    ledger = Ledger(tmp_path)
    for run in "abcd":
        ledger.append("decision", run_id=run, decision="HOLD")
    lines = ledger.path.read_text().splitlines()
    if harm == "change":
        lines[1] = lines[1].replace("HOLD", "PROMOTE")
    elif harm == "remove":
        del lines[1]
    elif harm == "swap":
        lines[1], lines[2] = lines[2], lines[1]
    else:
        lines[2] = "[]"
    ledger.path.write_text("\n".join(lines) + "\n")
    before = ledger.path.read_bytes()
    with pytest.raises(UserError, match=r"the hash in line [23] does not match line [12]"):
        ledger.entries()
    with pytest.raises(UserError):
        ledger.append("decision", run_id="e")
    assert ledger.path.read_bytes() == before


@pytest.mark.parametrize("cut", [1, 20])
def test_a_torn_last_line_is_moved_aside_and_that_is_said(tmp_path: Path, cut: int) -> None:
    ledger = Ledger(tmp_path)
    ledger.append("decision", once="run_id", run_id="a")
    ledger.append("decision", once="run_id", run_id="b")
    content = ledger.path.read_bytes()
    ledger.path.write_bytes(content[:-cut])
    ledger.append("decision", once="run_id", run_id="b")
    entries = ledger.entries()
    assert [entry["what"] for entry in entries] == ["decision", "repair", "decision"]
    truncated = (tmp_path / entries[1]["moved"]).read_bytes()
    assert truncated == content.splitlines(keepends=True)[1][:-cut]


def _append(folder: Path, writer: int) -> None:
    for number in range(20):
        Ledger(folder).append("decision", once="run_id", run_id=f"{writer}-{number}")


def test_writers_take_turns(tmp_path: Path) -> None:
    context = get_context("fork")
    writers = [context.Process(target=_append, args=(tmp_path, number)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert len({entry["run_id"] for entry in Ledger(tmp_path).entries()}) == 60
    assert all(json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines())


@pytest.mark.parametrize("free", [0, 100, 300])
def test_a_full_disk_leaves_the_ledger_as_it_was(small_disk: Callable[[str], Path], free: int) -> None:
    """The last page of the disk is nearly full: os.write writes a part of a line and returns its length."""
    folder = small_disk("64k")
    folder.chmod(0o700)
    ledger = Ledger(folder)
    ledger.append("decision", run_id="a")
    ledger.append("decision", run_id="b", sentence="x" * (4096 - free - ledger.path.stat().st_size - 175))
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass
    before = ledger.path.read_bytes()
    with pytest.raises(OSError, match=r"No space left on device: .*ledger.jsonl"):
        ledger.append("decision", run_id="c", sentence="y" * 5000)
    assert ledger.path.read_bytes() == before
    (folder / "filler").unlink()
    ledger.append("decision", run_id="c")
    assert [entry["what"] for entry in ledger.entries()] == ["decision"] * 3
