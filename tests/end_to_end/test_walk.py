"""README and the pages of docs/, walked as a reader would: in one clone, in order, every block that is tagged `run`.

A section is one terminal: what a block exports, and the folder it changes to, hold until its end, and for the whole page if
the block is above the first section. A block tagged `serve` has a terminal of its own and stays until the end. The first block, `make run`, runs with the default
parameters; then the clone gets small ones. Every page begins with the committed state.
"""

import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import shipped
from conftest import ROOT, SMALL, copy_project, processes_in, set_params
from pages import SHELL, Block, blocks, pages, read
from servers import Daemon, free_port

from flows.workspace import git
from ral.config.data import PhantomConfig
from ral.phantom.archive import write_phantom

FIRST = "README.md"
WHO = ("-c", "user.name=test", "-c", "user.email=test@example.org")
# A gate that a network of two epochs passes.
GATE = {"first_auroc": 0.3, "tail_floor": 0.5, "subgroup_floor": 0.5, "calibration_cap": 0.5}
GITCONFIG = "[user]\nname = test\nemail = test@example.org\n[init]\ndefaultBranch = main\n"


def install(project: Path) -> None:
    """Make .venv as `make run` does, but with the packages that run the tests: nothing is downloaded."""
    venv, bin_folder = project / ".venv", Path(sys.executable).parent
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    (packages / "project.pth").write_text(f"{sysconfig.get_path('purelib')}\n{project}\n")
    for path in bin_folder.iterdir():
        content = path.read_bytes() if path.is_file() else b""
        if re.match(rf"#!{re.escape(str(bin_folder))}/python".encode(), content):
            script = venv / "bin" / path.name
            script.write_bytes(f"#!{venv}/bin/python\n".encode() + content.partition(b"\n")[2])
            script.chmod(0o755)
    for name in ("installed", "installed-dev"):
        (venv / name).touch()


class Walk:
    """The clone, the terminal of the page, and the processes that serve."""

    def __init__(self, folder: Path, environment: dict[str, str], wait_until: Callable[..., None]) -> None:
        self.folder, self.project, self._wait_until = folder, folder / "ral", wait_until
        self.state = folder / "state"
        self.terminal = folder / "terminal.sh"
        self.served: list[Daemon] = []
        home = folder / "home"
        home.mkdir()
        (home / ".gitconfig").write_text(GITCONFIG)
        self.port = free_port()
        self.environment = environment | {
            "HOME": str(home), "RAL_STATE_DIR": str(self.state), "COLUMNS": "160", "TERM": "dumb",
            "PREFECT_HOME": str(home / "prefect"), "PREFECT_SERVER_API_PORT": str(self.port),
        }  # fmt: skip

    def script(self, text: str) -> str:
        """A block as this machine can run it: folders and ports of the pages become those of the walk."""
        for name, value in self.placeholders().items():
            text = re.sub(name, value, text)
        return text

    def placeholders(self) -> dict[str, str]:
        """What a page writes -> what the walk runs."""
        return {
            r"127\.0\.0\.1:4200": f"127.0.0.1:{self.port}",
            r"(?<![\w.])/data/": f"{self.folder}/data/",
            r"\bSTATE\b": str(self.state),
        }

    def new_terminal(self) -> None:
        """Begin a page: in the project folder, with its environment active."""
        self.terminal.write_text(f"cd {shlex.quote(str(self.project))}\n. .venv/bin/activate\n")

    def run(self, block: Block) -> str:
        """Run a block and return what it printed.

        Raises:
            AssertionError: a command failed, or a text is missing.
        """
        terminal = shlex.quote(str(self.terminal))
        script = (
            f"set -eo pipefail\n. {terminal}\n{self.script(block.text)}\n"
            f'export -p > {terminal}\nprintf "cd %q\\n" "$PWD" >> {terminal}\n'
        )
        begun = time.monotonic()
        done = subprocess.run(
            [SHELL, "-c", script], cwd=self.project, env=self.environment, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        print(f"{block.where}: {time.monotonic() - begun:.0f} s", flush=True)
        told = f"{block.where}:\n{block.text}\nexit code {done.returncode}, printed:\n{done.stdout}"
        assert done.returncode == 0, told
        missing = [text for text in block.expected if text not in done.stdout]
        assert not missing, f"{missing} not printed by {told}"
        return done.stdout

    def serve(self, block: Block) -> None:
        """Start a block in a terminal of its own; wait until its texts are printed and its addresses answer."""
        script = (
            f"set -e\ntrap 'echo ENDED' EXIT\ncd {shlex.quote(str(self.project))}\n. .venv/bin/activate\n"
            f"{self.script(block.text)}"
        )
        log = self.folder / f"served-{len(self.served)}.log"
        served = Daemon((SHELL, "-c", script), self.project, self.environment, log)
        self.served.append(served)
        served.start()

        def ready() -> bool:
            printed = log.read_text()
            assert "ENDED" not in printed, f"{block.where} ended:\n{printed}"
            return all(
                answers(self.script(text)) if text.startswith("http://") else text in printed
                for text in block.expected
            )

        self._wait_until(ready, every=1)
        print(f"{block.where}: serves", flush=True)

    def close(self) -> None:
        """End what serves, the last first."""
        for served in reversed(self.served):
            served.end()


def answers(address: str) -> bool:
    """Whether a server answers at an address."""
    try:
        return httpx.get(address, timeout=None).is_success
    except httpx.TransportError:
        return False


def shape(text: str) -> str:
    """Text without its digits and the number of spaces: metrics and times differ between machines."""
    return re.sub(r" +", " ", re.sub(r"\d+", "0", text))


def clone(walk: Walk) -> None:
    """Make the clone, its .venv, and the data folders that the pages name, in the layouts of the data sets."""
    copy_project(walk.project)
    for name in ("dvc.lock", "tasks/dvc.lock"):  # a clone has them; other tests begin without them
        shutil.copy(ROOT / name, walk.project / name)
        git(walk.project, "add", name)
    git(walk.project, *WHO, "commit", "-q", "--amend", "--no-edit")
    git(walk.project, "branch", "-M", "main")
    install(walk.project)
    nih = walk.folder / "data/nih"
    nih.mkdir(parents=True)
    write_phantom(nih, PhantomConfig(images=400, size=48, floor=0.009, seed=2))
    shipped.write("chexpert", walk.folder / "data/CheXpert-v1.0-small")
    shipped.write("cxr_lt_2024_task1", walk.folder / "data/mimic-cxr-jpg")
    shipped.write("table", walk.folder / "data/hospital")
    write_own_table(walk.folder / "data/ours")


def write_own_table(root: Path) -> None:
    """A table of one's own: an id, the patient, and a column for the only finding; images are found by id."""
    rows = []
    for number, image in enumerate(shipped.people()):
        name = f"{number:04}.png"
        shipped.save_image(root / "images" / name, image)
        rows.append([name, image.patient, int("Effusion" in image.findings)])
    shipped.write_csv(root / "ours.csv", "id,patient_id,effusion", rows)


def make_small(walk: Walk) -> None:
    """Give the clone small parameters, run it, and commit parameters and lock files."""
    set_params(walk.project, SMALL | {"gate": GATE})
    commands = 'dvc repro && git commit -qam "small parameters"'
    walk.run(Block("small parameters", 0, SHELL, commands, "run", (), "", 0))


def restore(walk: Walk, page: str) -> None:
    """Go back to what is committed on the first branch; its outputs come from DVC's cache."""
    commands = "git checkout -q params.yaml dvc.lock tasks/dvc.lock && git switch -q main && dvc repro"
    walk.run(Block(f"before {page}", 0, SHELL, commands, "run", (), "", 0))


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_the_commands_of_readme_and_docs_do_what_they_say(
    tmp_path: Path, environment: dict[str, str], wait_until: Callable[..., None]
) -> None:
    walk = Walk(tmp_path, environment, wait_until)
    clone(walk)
    try:
        for page in pages():
            walk_page(walk, page)
    finally:
        walk.close()
    wait_until(lambda: not processes_in(tmp_path))


def walk_page(walk: Walk, page: str) -> None:
    """Run the blocks of a page."""
    walk.new_terminal()
    tagged = [block for block in blocks(page, read(page)) if block.kind]
    if page != FIRST and any(block.kind == "run" for block in tagged):
        restore(walk, page)
    printed, section, head = "", 0, walk.terminal.read_text()
    for block in tagged:
        if block.section > section:
            walk.terminal.write_text(head)
        if block.kind == "run":
            printed = walk.run(block)
        elif block.kind == "serve":
            walk.serve(block)
        elif block.kind == "not run":
            print(f"{block.where}: not run: {block.rest}", flush=True)
        elif block.kind == "file":
            path = walk.project / block.rest
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        else:
            assert shape(block.text) in shape(printed), f"{block.where}: printed is\n{printed}"
            make_small(walk)  # the only output is that of `make run` in README; all else runs with these
        section = block.section
        head = head if section else walk.terminal.read_text()
