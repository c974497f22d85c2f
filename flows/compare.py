"""Flow compare: a grid of experiments (losses, samplers, seeds), one after the other, and the paired
comparison at its end.

    python -m flows.compare loss.name=ral,bce train.seed=0,1           # here and now; `make compare` is a small one
    prefect deployment run compare/compare --param 'grid={"loss.name": ["ral", "bce"], "train.seed": [0, 1]}'

Each combination is a DVC experiment in the workspace state_dir/workspaces/compare, named after what it is
made from; `dvc exp show` there lists them. What was done before a crash is not done again: only experiments
without a result are run, each by

    dvc exp run --temp --name NAME -S loss.name=bce -S train.seed=1

(DVC's own queue is worked off by a process that outlives whoever started it, so the flow is the queue.)
Figures are of the validation images, for choosing; `--split test` is for the report, once the choice is made.
"""

import argparse
from pathlib import Path, PurePosixPath

if __name__ == "__main__":  # before the imports that take seconds: --help needs none of them
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "grid", nargs="+", metavar="PARAMETER=VALUE,VALUE", help="the first values are the baseline"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="PARAMETER=VALUE", help="for all experiments")
    parser.add_argument("--revision", default="HEAD", help="branch, tag or commit (HEAD)")
    parser.add_argument("--split", choices=("val", "test"), default="val", help="images to compare on (val)")
    parser.add_argument("--out", type=Path, help="text file for the table, too")
    options = parser.parse_args()

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pandas as pd
from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact

from flows.artifacts import shown
from flows.cli import run_from_cli
from flows.experiments import fetch
from flows.flow_run import flow_run
from flows.notifications import notify_on_failure
from flows.overrides import Changes, flatten, parse_changes, parse_grid, to_settings
from flows.stage_runner import StageError
from flows.stage_tasks import run_module_task, stages
from flows.workspace import Workspace, change_params, git
from ral import artifacts
from ral.config.base import load
from ral.config.evaluate import EvaluateParams
from ral.errors import UserError
from ral.evaluation.compare import check_names, read_table
from ral.evaluation.compare import compare as paired
from ral.evaluation.specs import LABELS
from ral.files import atomic_write
from ral.runs import RUN_ID
from ral.wording import difference, notice_sentence

SEED = "train.seed"


@flow(
    name="compare",
    on_failure=[notify_on_failure],
    on_crashed=[notify_on_failure],
    on_cancellation=[notify_on_failure],
)
def compare(
    grid: dict[str, list[Any]],
    revision: str = "HEAD",
    changes: Changes | None = None,
    split: Literal["val", "test"] = "val",
) -> str:
    """Run every combination of a grid, compare each with the first one of its seed, and return the table as text.

    Args:
        grid: values by dotted name of the parameter; the first value of each is the baseline's.
        revision: branch, tag or commit of the project; HEAD is its default branch.
        changes: parameters that all combinations share.
        split: images to compare on; choose by `val`.
    """
    with flow_run("compare") as run:
        workspace = run.checkout(revision, changes)
        shutil.rmtree(
            workspace.folder / ".dvc/tmp/exps", ignore_errors=True
        )  # copies of experiments that were killed
        plan = experiments(workspace, grid, changes or {})
        stage = stages(workspace.folder, run.environment)
        stage("manifest", "preprocess")  # once for all of them
        run_missing(workspace, plan, changes or {})
        table = comparison(workspace, plan, split)
    text = summary(table, split)
    create_table_artifact(
        key="comparison", table=shown(json.loads(table.to_json(orient="records"))), description=text
    )
    get_run_logger().info("%s", text)
    return text


def experiments(
    workspace: Workspace, grid: Mapping[str, Sequence[Any]], changes: Changes
) -> dict[str, Changes]:
    """Name -> parameters of every combination, checked before anything is run.

    Raises:
        UserError: a parameter has no values, or a value does not fit.
    """
    empty = [key for key, values in grid.items() if not values]
    if not grid or empty:
        raise UserError(f"grid: {empty[0] if empty else 'it'} has no values.")
    plan = {}
    with_changes = (workspace.folder / "params.yaml").read_bytes()
    for values in itertools.product(*grid.values()):
        combination = dict(zip(grid, values, strict=True))
        try:
            change_params(workspace.folder / "params.yaml", combination)
        finally:
            (workspace.folder / "params.yaml").write_bytes(with_changes)
        identity = json.dumps([workspace.revision, dict(changes), combination], sort_keys=True)
        words = "-".join(
            "".join(c if c.isalnum() else "-" for c in str(value)).strip("-")[:20] for value in values
        )
        plan[f"{words}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"] = combination
    return plan


def run_missing(workspace: Workspace, plan: Mapping[str, Changes], changes: Changes) -> None:
    """Run the experiments that have no result yet; one that fails does not keep the others from running.

    Raises:
        StageError: some failed.
    """
    failed = []
    for name, combination in plan.items():
        if name in done(workspace):
            continue
        settings = to_settings({**flatten(changes), **flatten(combination)})
        options = [part for setting in settings for part in ("-S", setting)]
        try:
            run_module_task(
                name, workspace.folder, "-m", "dvc", "exp", "run", "--temp", "--name", name, *options
            )
        except StageError as error:
            failed.append(f"{name}: {str(error).splitlines()[-1]}")
    if failed:
        raise StageError(
            "\n".join(
                [f"{len(failed)} of {len(plan)} experiments failed; run again to repeat these only:", *failed]
            )
        )


def done(workspace: Workspace) -> set[str]:
    """Names of the experiments in the workspace that have a result."""
    refs = git(workspace.folder, "for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
    return {ref.rsplit("/", 1)[1] for ref in refs if ref.count("/") == 4}


def comparison(
    workspace: Workspace, plan: Mapping[str, Changes], split: Literal["val", "test"]
) -> pd.DataFrame:
    """Each experiment against the first one of the same seed: the rows of `ral.evaluation.compare`, with the seed.

    Raises:
        UserError: the experiments of a seed were prepared differently.
    """
    config = load(workspace.folder / "params.yaml", EvaluateParams).evaluate
    by_seed: dict[Any, list[str]] = {}
    for name, combination in plan.items():
        by_seed.setdefault(combination.get(SEED, ""), []).append(name)
    tables = []
    for seed, names in by_seed.items():
        if len(names) < 2:
            continue
        logits, studies = {}, {}
        for name in names:
            target = workspace.folder / "runs" / os.environ[RUN_ID] / name
            target.mkdir(parents=True, exist_ok=True)
            logits[name] = pd.read_parquet(_get(workspace, name, artifacts.logits(split), target))
            check_names(name, logits[name])
            findings = [column for column in logits[name].columns if column != "image_id"]
            studies[name] = read_table(_get(workspace, name, artifacts.STUDIES, target), findings)
        first = studies[names[0]]
        other = [name for name in names if not studies[name].equals(first)]
        if other:
            raise UserError(
                f"{names[0]} and {other[0]} were prepared differently, so their images or labels are not the same: "
                "a grid compares losses, samplers, models and seeds on the same data."
            )
        tables.append(paired(first, logits, split, config).assign(seed=seed))
    if not tables:
        raise UserError("grid: nothing to compare; give a parameter other than the seed two values or more.")
    return pd.concat(tables, ignore_index=True)


def _get(workspace: Workspace, name: str, file: PurePosixPath, folder: Path) -> Path:
    return fetch(name, file, folder / file.name, workspace.folder)


def summary(table: pd.DataFrame, split: str) -> str:
    """The differences of macro AP and AUROC for people, a line per experiment and the mean over seeds."""
    lines = [notice_sentence("phantom" in set(table["data"]))]
    macro = table[(table["level"] == "macro") & (table["note"] == "")]
    for (metric, baseline), part in macro.groupby(["metric", "baseline"], sort=False):
        lines.append(f"{LABELS[str(metric)]}, macro, {split} images, against {baseline}:")
        for row in part.to_dict("records"):
            lines.append(
                f"  {row['model']}: {row['baseline_value']:.3f} -> {row['value']:.3f}, "
                f"{difference(row['difference'], row['low'], row['high'])}"
            )
    lines += _over_seeds(macro)
    return "\n".join(lines)


def _over_seeds(macro: pd.DataFrame) -> list[str]:
    """Mean and spread of the differences where a combination was run with several seeds."""
    rows = macro[macro["metric"] == "ap"].copy()
    # The position in the grid of one seed identifies the combination across seeds.
    rows["position"] = rows.groupby("seed", sort=False).cumcount()
    lines = []
    for _, part in rows.groupby("position"):
        if len(part) > 1:
            spread = part["difference"].std(ddof=1)
            lines.append(
                f"Over {len(part)} seeds ({', '.join(part['model'])}): "
                f"mean difference of macro AP {part['difference'].mean():+.3f}, standard deviation {spread:.3f}"
            )
    return lines


def main(options: argparse.Namespace) -> None:
    """Run the grid that the command line names, without a server."""
    with run_from_cli():
        grid = parse_grid(options.grid)
        text = compare(grid, options.revision, parse_changes(options.set), options.split)
    print(text)
    if options.out:
        with atomic_write(options.out) as draft:
            draft.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(options)
