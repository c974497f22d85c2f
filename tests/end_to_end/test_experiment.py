"""README's section on experiments, command by command: names, metrics, plots, and the way back."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from ral.files import sha256
from ral.reporting.run_info import RUN_FILE

Run = Callable[..., subprocess.CompletedProcess[str]]
# See the fixture `ran`.
Ran = tuple[Path, dict[str, str], str]

# Outputs of training that a lock file of another machine names, but no cache here holds.
ELSEWHERE = "0123456789abcdef"
PLOTS = ["models/history.csv", "reports/findings.csv", "roc", "precision_recall", "reliability"]


def contents(folder: Path) -> dict[str, str]:
    """Hash of every output; run.css beside the report is none, and names the report that it is about."""
    files = (path for name in ("data", "models", "reports") for path in sorted((folder / name).rglob("*")))
    return {
        str(path.relative_to(folder)): sha256(path)
        for path in files
        if path.is_file() and path.name != RUN_FILE
    }


def from_readme(start: str) -> list[str]:
    """The words of README's command that starts so."""
    (line,) = set(re.findall(f"^{re.escape(start)}.*$", (ROOT / "README.md").read_text(), re.MULTILINE))
    return shlex.split(line, comments=True)


@pytest.fixture(scope="module")
def ran(chain_done: Path, tmp_path_factory: pytest.TempPathFactory, run: Run) -> Ran:
    """A project after a run and an experiment in place; the outputs of the run, and what the experiment printed."""
    folder = tmp_path_factory.mktemp("experiment") / "project"
    shutil.copytree(chain_done, folder, symlinks=True)
    before = contents(folder)
    printed = run("dvc", "exp", "run", "--name", "plain", "-S", "loss.name=bce", cwd=folder).stdout
    return folder, before, printed


def test_an_experiment_ends_with_the_results_and_the_path(ran: Ran, run: Run) -> None:
    folder, _, printed = ran
    table = run("python", "-m", "ral.reporting.summary", cwd=folder).stdout
    assert table.startswith("PHANTOM")
    assert table.endswith("report: reports/report.html\n")
    after = printed[printed.index("Running stage 'report'") :]
    assert after.count(table) == 1


def test_exp_show_as_in_the_readme_names_the_experiment(ran: Ran, run: Run) -> None:
    shown = run(*from_readme("dvc exp show"), cwd=ran[0]).stdout
    assert "[plain]" in shown
    for column in ("Experiment", "val.ap", "val.auroc", "val.data", "loss.name", "train.seed"):
        assert column in shown
    assert "…" not in shown  # nothing is cut off at 80 characters
    assert "test." not in shown


def test_metrics_fit_a_terminal_and_are_marked(ran: Ran, run: Run) -> None:
    shown = run("dvc", "metrics", "show", cwd=ran[0]).stdout
    assert max(map(len, shown.splitlines())) <= 160
    for column in (
        "val.ap",
        "val.auroc",
        "test.ap",
        "test.auroc",
        "test.ap_head",
        "test.ap_tail",
        "test.ece",
    ):
        assert f" {column} " in shown
    assert shown.count("phantom") == 2
    assert "train" not in run("dvc", "params", "diff", cwd=ran[0]).stdout  # loss.name alone
    change = json.loads(run("dvc", "metrics", "diff", "--json", "HEAD", "plain", cwd=ran[0]).stdout)
    assert change["reports/summary.json"]["test.ap"]["diff"] != 0


def test_plots_show_both_experiments(ran: Ran, run: Run) -> None:
    plots = json.loads(run("dvc", "plots", "diff", "HEAD", "plain", "--json", cwd=ran[0]).stdout)
    assert "errors" not in plots
    assert list(plots["data"]) == PLOTS
    for name, (plot,) in plots["data"].items():
        spec = json.loads(plot["content"]) if isinstance(plot["content"], str) else plot["content"]
        rows = spec["data"]["values"]
        assert {row["rev"] for row in rows} == {"HEAD", "plain"}, name
        assert {row["data"] for row in rows} == {"phantom"}, name
        assert "<DVC_METRIC" not in json.dumps(spec), name
        assert "PHANTOM IMAGES" in json.dumps(spec), name
        for field in fields(spec):
            assert field in rows[0] or field in ("a", "b", "mark"), (name, field)


def fields(spec: object) -> set[str]:
    """Columns that a Vega-Lite specification draws."""
    if isinstance(spec, list):
        return set().union(*map(fields, spec))
    if not isinstance(spec, dict):
        return set()
    own = {spec["field"]} if isinstance(spec.get("field"), str) else set()
    return own.union(*(fields(part) for name, part in spec.items() if name != "values"))


@pytest.mark.parametrize(
    "lock", [pytest.param("of this machine", marks=pytest.mark.long), "of another machine"]
)
def test_the_way_back_restores_the_outputs(ran: Ran, run: Run, tmp_path: Path, lock: str) -> None:
    """README's commands; they need no committed lock file that names outputs which are here."""
    folder, before, _ = Path(shutil.copytree(ran[0], tmp_path / "project", symlinks=True)), *ran[1:]
    assert contents(folder) != before
    if lock == "of another machine":
        text = (folder / "dvc.lock").read_text()
        committed = run("git", "show", "HEAD:dvc.lock", cwd=folder).stdout
        for out in YAML(typ="safe").load(committed)["stages"]["train"]["outs"]:
            committed = committed.replace(out["md5"][:16], ELSEWHERE)
        (folder / "dvc.lock").write_text(committed)
        run(
            "git",
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@e.org",
            "commit",
            "-qm",
            "lock",
            "dvc.lock",
            cwd=folder,
        )
        (folder / "dvc.lock").write_text(text)
    back = re.search(r"`(git checkout params\.yaml && [^`]+)`", (ROOT / "README.md").read_text())
    assert back, "README names no way back"
    printed = run("bash", "-c", back[1], cwd=folder).stdout
    assert contents(folder) == before
    assert "Running stage 'train'" not in printed  # from DVC's cache
    status = run("git", "status", "--porcelain", cwd=folder).stdout
    assert status == ("" if lock == "of this machine" else " M dvc.lock\n")


@pytest.mark.long
def test_a_recipe_runs_as_the_readme_says(ran: Ran, run: Run, tmp_path: Path) -> None:
    """Two epochs instead of the recipe's: what is tested is that the changes arrive and the stages run."""
    folder = Path(shutil.copytree(ran[0], tmp_path / "project", symlinks=True))
    run("git", "checkout", "params.yaml", cwd=folder)
    before = YAML(typ="safe").load((folder / "params.yaml").read_text())
    command = from_readme("python -m flows.recipe")
    printed = run(*command, "-S", "train.epochs=2", "--name", "recipe", cwd=folder).stdout
    assert "Running stage 'report'" in printed
    after = YAML(typ="safe").load((folder / "params.yaml").read_text())
    recipe = YAML(typ="safe").load((ROOT / command[-1]).read_text())
    assert after["loss"] == before["loss"] | recipe["loss"]
    assert after["train"] == before["train"] | recipe["train"] | {"epochs": 2}
    history = (folder / "models/history.csv").read_text().splitlines()
    assert len(history) == 3
    assert "[recipe]" in run("dvc", "exp", "show", cwd=folder).stdout
