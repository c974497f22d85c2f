"""The ledger: hash chain, truncated last lines, one entry per decision, concurrent writers."""

import contextlib
import json
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest
from simulated_release import decided

from ral.errors import UserError
from ral.release.ledger import FIRST, Decision, Entry, Ledger, Opening, Promotion, Repair


def promoted(version: str, reason: str = "better") -> Promotion:
    return Promotion(tag="ral#champion#1", version=version, by="Ada", reason=reason)


def test_entries_are_chained_and_read_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "state")
    assert ledger.entries() == []
    first = ledger.append(decided("a"))
    second = ledger.append(promoted("v0.1.0", reason="“first” model"))
    assert ledger.entries() == [first, second]
    assert first.before == FIRST
    assert second.before != FIRST
    assert [entry.number for entry in ledger.entries()] == [1, 2]
    assert ledger.path.stat().st_mode & 0o077 == 0


def test_a_decision_of_the_same_run_is_written_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    first = ledger.append(decided("a"))
    assert ledger.append(decided("a", decision="PROMOTE")) == first
    ledger.append(decided("b"))
    ledger.append(promoted("a"))
    assert len(ledger.entries()) == 3


def test_every_opening_is_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for _ in range(2):
        ledger.append(Opening(version="v0.1.0", by="Ada", reason="again", opened_before=0))
    assert len(ledger.entries()) == 2


# A line of each kind, byte for byte as ledgers have them.
LINES = [
    '{"number": 1, "time": "2026-01-01T00:00:00+00:00", "what": "decision", "before": "00", "run_id": "a", "decision": "HOLD", '
    '"version": "v0.1.0", "commit": "c0", "champion": null, "set": {"images": 9, "left_out_patients": 1, "number": 1, '
    '"patients": 8, "sealed_patients": 2, "sets": 2, "turn": 0}, "sentence": "HOLD: größer"}',
    '{"number": 2, "time": "t", "what": "promote", "before": "00", "tag": "ral#champion#1", "version": "v0.1.0", "by": "Ada", '
    '"reason": "why"}',
    '{"number": 3, "time": "t", "what": "rollback", "before": "00", "tag": "ral#champion#2", "version": "v0.1.0", "by": "Ada", '
    '"reason": "why"}',
    '{"number": 4, "time": "t", "what": "open-sealed", "before": "00", "version": "v0.1.0", "by": "Ada", "reason": "why", '
    '"opened_before": 1}',
    '{"number": 5, "time": "t", "what": "repair", "before": "00", "moved": "ledger.jsonl.torn-at-7"}',
]  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_a_line_is_read_and_written_as_it_was(line: str) -> None:
    assert Entry.from_line(line.encode()).to_line().decode() == f"{line}\n"


def test_an_entry_of_another_version_is_named(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for fields in ({"what": "verdict"}, {"what": "decision", "run_id": "a"}):
        ledger.path.write_text(json.dumps({"number": 1, "time": "t", "before": FIRST} | fields) + "\n")
        with pytest.raises(UserError, match=r"ledger\.jsonl, line 1: another version of the project wrote"):
            ledger.entries()


@pytest.mark.parametrize("harm", ["change", "remove", "swap", "garbage"])
def test_tampering_is_noticed_and_nothing_is_added(tmp_path: Path, harm: str) -> None:
    ledger = Ledger(tmp_path)
    for run in "abcd":
        ledger.append(decided(run))
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
        ledger.append(decided("e"))
    assert ledger.path.read_bytes() == before


@pytest.mark.parametrize("cut", [1, 20])
def test_a_torn_last_line_is_moved_aside_and_that_is_said(tmp_path: Path, cut: int) -> None:
    ledger = Ledger(tmp_path)
    ledger.append(decided("a"))
    ledger.append(decided("b"))
    content = ledger.path.read_bytes()
    ledger.path.write_bytes(content[:-cut])
    ledger.append(decided("b"))
    entries = ledger.entries()
    assert [entry.event.what for entry in entries] == ["decision", "repair", "decision"]
    assert isinstance(entries[1].event, Repair)
    truncated = (tmp_path / entries[1].event.moved).read_bytes()
    assert truncated == content.splitlines(keepends=True)[1][:-cut]


def _append(folder: Path, writer: int) -> None:
    for number in range(20):
        Ledger(folder).append(decided(f"{writer}-{number}"))


def test_writers_take_turns(tmp_path: Path) -> None:
    context = get_context("fork")
    writers = [context.Process(target=_append, args=(tmp_path, number)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    runs = [entry.event.run_id for entry in Ledger(tmp_path).entries() if isinstance(entry.event, Decision)]
    assert len(set(runs)) == len(runs) == 60
    assert all(json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines())


@pytest.mark.parametrize("free", [0, 100, 300])
def test_a_full_disk_leaves_the_ledger_as_it_was(small_disk: Callable[[str], Path], free: int) -> None:
    """The last page of the disk is nearly full: os.write writes a part of a line and returns its length."""
    folder = small_disk("64k")
    folder.chmod(0o700)
    ledger = Ledger(folder)
    ledger.append(decided("a", sentence=""))
    line = ledger.path.stat().st_size
    ledger.append(decided("b", sentence="x" * (4096 - free - 2 * line)))
    assert ledger.path.stat().st_size == 4096 - free
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
        while filler.write(bytes(4096)):
            pass
    before = ledger.path.read_bytes()
    with pytest.raises(OSError, match=r"No space left on device: .*ledger.jsonl"):
        ledger.append(decided("c", sentence="y" * 5000))
    assert ledger.path.read_bytes() == before
    (folder / "filler").unlink()
    ledger.append(decided("c"))
    assert [entry.event.what for entry in ledger.entries()] == ["decision"] * 3
