"""Flows that are started at the same moment on one state_dir: one of each kind runs, the other is refused,
nothing is lost.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import processes_in
from nights import Clinic

from flows.workspace import git
from ral.inference.bundle import verify
from ral.release.registry import Registry

NIGHT = ("flows.nightly",)
# train-ral with changed parameters: in a workspace of its own beside the night's, on the same registry and cache.
TRAIN = (
    "-c",
    "from flows.train_ral import run_from_cli, train_ral\nwith run_from_cli():\n    "
    "train_ral(changes={'train.seed': 7})",
)


def start(clinic: Clinic, command: tuple[str, ...], log: Path, home: Path) -> subprocess.Popen[bytes]:
    """Start a flow without a server, as one does from a terminal; what it prints is in `log`."""
    arguments = ("-m", *command) if command is NIGHT else command
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, *arguments], cwd=clinic.project, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL,
            env=clinic.env | {"PREFECT_API_URL": "", "PREFECT_HOME": str(home), "PYTHONPATH": str(clinic.project)},
        )  # fmt: skip


def all_at_once(clinic: Clinic, folder: Path) -> dict[str, tuple[int, str]]:
    """Two nights and two trainings at once: exit code and output of each."""
    folder.mkdir()
    # A home each: where two make Prefect's own database at the same moment, one fails.
    flows = {
        f"{kind}{number}": start(clinic, command, folder / f"{kind}{number}.log", folder / f"{kind}{number}")
        for number in (1, 2)
        for kind, command in (("night", NIGHT), ("train", TRAIN))
    }
    return {name: (flow.wait(), (folder / f"{name}.log").read_text()) for name, flow in flows.items()}


def one_ran(ended: dict[str, tuple[int, str]], kind: str, workspace: str) -> None:
    """Of two flows one came to its end; the other was refused in one line and touched nothing."""
    (ran, _), (refused, text) = sorted(
        (code != 0, text) for name, (code, text) in ended.items() if kind in name
    )
    printed = "\n\n".join(text for _, text in ended.values())
    assert (ran, refused) == (False, True), printed
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, text
    assert f"The workspace {workspace} is locked by run " in errors[0]
    # Before, Prefect may say that its own server was slow.
    assert "Traceback" not in text.partition("Finished in state")[2]
    assert "Stage '" not in text, "the refused one has run a stage"


def all_is_whole(clinic: Clinic, decisions: int) -> None:
    """Ledger, registry and bundles say the same, and no process is left."""
    ledger = clinic.ledger()
    decided = [line for line in ledger if line["what"] == "decision"]
    assert len(decided) == decisions
    registry = clinic.state / "registry.git"
    git(registry, "fsck", "--strict")
    newest = git(registry, "rev-list", "--first-parent", f"--max-count={decisions}", "nightly").splitlines()
    nights = newest[::-1]
    assert nights == [line["commit"] for line in decided]
    releases = Registry(clinic.state).releases()
    assert [release.commit for release in releases] == nights
    for release in releases:
        verify(release.bundle)
    assert git(clinic.upstream, "rev-parse", "nightly") == nights[-1]
    clinic.tidy()
    assert not list(registry.rglob("*.lock"))
    assert not processes_in(clinic.project)
    for name in ("nightly", "train-ral"):
        assert (clinic.state / f"workspaces/{name}.run").read_text() == ""
        assert (clinic.state / f"workspaces/{name}/reports/report.html").is_file()


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_two_nights_by_hand_at_once_are_one_night(
    tmp_path: Path,
    environment: dict[str, str],
    run: Callable[..., subprocess.CompletedProcess[str]],
    wait_until: Callable[..., None],
) -> None:
    """From nothing, when even the registry must be made, and again on what is there, after a delivery."""
    clinic = Clinic(tmp_path, environment, run, wait_until, images=500)
    for night, share in enumerate((0.8, 1.0), start=1):
        clinic.hospital.deliver(share)
        ended = all_at_once(clinic, tmp_path / str(night))
        one_ran(ended, "night", "nightly")
        one_ran(ended, "train", "train-ral")
        all_is_whole(clinic, night)
