"""Kills `register` or `prune` of ral.release before each write to the disk, and checks that rerunning the
command recovers.

python killing.py register|prune BASE WORK     # BASE has state/ and project/; WORK is an empty folder

Prints the number of kills. Exits with an error at the first inconsistent state.
"""

import os
import shutil
import signal
import sys
import traceback
from argparse import Namespace
from pathlib import Path

import gto.api  # noqa: F401  imported once, before the forks

from ral.files import read_json
from ral.inference.bundle import verify
from ral.models import load  # noqa: F401  the same
from ral.release import commands
from ral.release.ledger import Decision, Promotion
from ral.release.registry import Registry

EVENTS = {
    "open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.truncate", "os.scandir", "shutil.rmtree",
    "shutil.copyfile", "subprocess.Popen",
}  # fmt: skip


def act(what: str, base: Path, state: Path) -> None:
    """The command."""
    if what == "prune":
        commands.do_prune(Namespace(state=state, params=base / "project/params.yaml"))
        return
    decision = base / "decision.json"
    commands.do_register(
        Namespace(
            state=state, workspace=base / "project", commit=(base / "commit").read_text(), decision=decision,
            run_id="last", promote=True, approved_by=None,
        )
    )  # fmt: skip


def forked(what: str, base: Path, state: Path, kill_at: int = 0) -> bool:
    """Run the command in a child that is killed before its `kill_at`-th event in `state`; whether it completed."""
    child = os.fork()
    if child:
        code = os.waitpid(child, 0)[1]
        assert code in (0, signal.SIGKILL), f"{what} failed ({code}) in {state}"
        return code == 0
    seen = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event in EVENTS and any(str(state) in str(argument) for argument in arguments):
            seen += 1
            if seen == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    try:
        act(what, base, state)
        os._exit(0)
    except BaseException:  # noqa: BLE001  the child must never continue as its parent
        traceback.print_exc()
        os._exit(1)


def check_at_once(state: Path) -> None:
    """Invariants at every moment: there is a champion, its bundle verifies, and the symlink points to it."""
    champion = Registry(state).champion()
    assert champion is not None
    verify(champion.bundle)
    assert (state / "champion").resolve() == champion.bundle.resolve()


def check_at_the_end(what: str, base: Path, state: Path) -> None:
    """Expected state after the same command has completed."""
    registry = Registry(state)
    releases, entries = registry.releases(), registry.ledger.entries()
    decisions = [entry.event.run_id for entry in entries if isinstance(entry.event, Decision)]
    tags = [entry.event.tag for entry in entries if isinstance(entry.event, Promotion)]
    assert len(tags) == len(set(tags)), tags
    remaining = [path.name for path in registry.folder.iterdir()]
    if what == "register":
        assert [release.version for release in releases] == ["v0.1.0", "v0.2.0", "v0.3.0", "v0.4.0"]
        assert [release.stage for release in releases] == ["archived", "registered", "registered", "champion"]
        assert decisions == ["last"]
        assert sorted(remaining) == [release.version for release in releases]
        assert read_json(releases[-1].bundle / "decision.json")["run_id"] == "last"
    else:
        assert sorted(remaining) == ["v0.1.0", "v0.3.0"], remaining
    for name in remaining:
        verify(registry.folder / name)
    assert not list(state.rglob("*.draft")), "a draft is left"


def main() -> None:
    what, base, work = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    kills = 0
    while True:
        state = Path(shutil.copytree(base / "state", work / f"state{kills}", symlinks=True))
        if forked(what, base, state, kills + 1):
            break
        kills += 1
        check_at_once(state)
        assert forked(what, base, state)
        check_at_once(state)
        check_at_the_end(what, base, state)
        shutil.rmtree(state)
    print(kills)


if __name__ == "__main__":
    main()
