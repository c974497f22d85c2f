"""Trains the arms of the study on every fold, without DVC and Prefect, on a CPU or a GPU.

    python -m benchmarks.study --list                              # what would run, with expected minutes
    python -m benchmarks.study --hours 8 --jobs 2                  # as much as fits, most informative first
    python -m benchmarks.study --device cuda --jobs 12             # twelve processes share one GPU
    python -m benchmarks.study --rerun RUN                         # run one again and compare

Every finished run is a row of docs/results/runs.csv; its logits are in runs/study/logits. A run that has a row is not
repeated: after a kill, start the same command again. docs/study.md describes folds, arms and stages.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.study.plan import (
    BATCH_SIZE,
    BIG,
    EPOCHS,
    PRECISION,
    STAGES,
    Plan,
    Row,
    Run,
    Settings,
    run_of,
    seconds,
)
from benchmarks.study.recipes import ARMS
from ral.errors import UserError, exit_with_message

if TYPE_CHECKING:
    from benchmarks.study.workers import Done, Failed, Pool, Report

# Columns that a rerun on the same device must repeat.
REPEATED = (
    "best_epoch", "selection_macro_ap", "selection_macro_auroc", "test_macro_ap", "test_macro_auroc", "logits",
)  # fmt: skip


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folder = Path
    parser.add_argument("--prepared", type=folder, default=Path("data/prepared"), help="output of preprocess")
    parser.add_argument("--state", type=folder, default=Path("runs/study"), help="images, logits, logs")
    parser.add_argument(
        "--results", type=folder, default=Path("docs/results"), help="runs.csv and scales.csv"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each with one processor thread")
    parser.add_argument("--hours", type=float, help="start no run that is not expected to end by then")
    parser.add_argument(
        "--stages", nargs="+", choices=STAGES, default=STAGES, metavar="STAGE", help=", ".join(STAGES)
    )
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=tuple(ARMS), metavar="ARM", help=", ".join(ARMS)
    )
    parser.add_argument("--folds", nargs="+", type=int, choices=range(5), default=range(5), metavar="FOLD")
    parser.add_argument("--backbone", default="resnet18", help="timm name, or resnet10t_narrow (%(default)s)")
    parser.add_argument(
        "--big", nargs="+", help="backbones of the stage seeds (resnet50 on a GPU, none on a CPU)"
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="(%(default)s)")
    parser.add_argument(
        "--precision", choices=("float32", "bfloat16"), help="default: float32; on a GPU bfloat16"
    )
    parser.add_argument("--commit", help="of the code, for runs.csv, where there is no git")
    parser.add_argument(
        "--pack", type=folder, metavar="FOLDER", help="also copy rows and logits there, as runs end"
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--list", action="store_true", help="print what would run")
    action.add_argument("--rerun", metavar="RUN", help="run a row of runs.csv again and compare")
    action.add_argument(
        "--unpack", type=folder, metavar="FOLDER", help="merge what --pack wrote on another machine"
    )
    return parser.parse_args(arguments)


def main(options: argparse.Namespace) -> None:
    """Do what the options say.

    Raises:
        UserError: see `run_study`, `rerun` and `archive.merge`.
    """
    from benchmarks.study import archive, table

    path = options.results / table.RUNS_FILE
    if options.unpack:
        added, without = archive.merge(options.unpack, options.state, options.results)
        print(f"{added} rows added to {path}; {without} left out: their logits are missing or incomplete")
        return
    settings = Settings(
        options.device, options.backbone, options.epochs, options.batch_size,
        options.precision or PRECISION[options.device],
    )  # fmt: skip
    big = BIG[options.device] if options.big is None else options.big
    plan = Plan(settings, options.stages, options.arms, options.folds, big)
    if options.list:
        print_list(plan, table.read_rows(path), options.jobs)
    elif options.rerun:
        rerun(options)
    else:
        Study(options, plan).run()


def print_list(plan: Plan, rows: Sequence[Row], jobs: int) -> None:
    """Print all runs that are left, as if every run scored the same: learning rates may turn out otherwise."""
    simulated = list(rows)
    total, count = 0.0, 0
    while ready := plan.ready(simulated):
        run = ready[0]
        expected = seconds(run, rows)
        total, count = total + expected / jobs, count + 1
        print(f"{run.name:60}{expected / 60:8.1f} min{total / 60:10.1f} min in all")
        simulated.append({
            "run": run.name, "selection_macro_ap": "0", "backbone": run.backbone, "epochs": str(run.epochs),
            "seconds": str(expected),
        })  # fmt: skip
    print(f"{count} runs. The learning rates of stages after `rate` are chosen by its results.")


class Study:
    """One start of the study.

    Args:
        options: of the command line.
        plan: of the runs.

    Raises:
        UserError: see `folds.import_prepared` and `table.check_rows`.
    """

    def __init__(self, options: argparse.Namespace, plan: Plan) -> None:
        from benchmarks.study import archive, folds, table

        self.options, self.plan = options, plan
        self.started = time.monotonic()
        self.path = options.results / table.RUNS_FILE
        data = folds.import_prepared(options.prepared, options.state)
        self.rows = table.read_rows(self.path)
        table.check_rows(self.rows, data.sha256, self.path)
        self.failed: dict[str, str] = {}
        self.archive = archive.Archive(options.pack, options.results) if options.pack else None
        self.size = data.size

    def run(self) -> None:
        """Run what is left.

        Raises:
            UserError: another process runs the study, or its workers do not start.
        """
        from ral.files import try_lock

        with (self.options.state / "lock").open("a") as stream:
            if not try_lock(stream):
                raise UserError(f"Another process runs the study in {self.options.state}.")
            if self.archive:
                self.archive.copy_tables()  # a row that was written just before a kill
            before = len(self.rows)
            pool(self.options, self.plan, self.size, self.choose, self.report).run()
        left = len(self.plan.ready(self.rows, self.failed))
        print(f"{len(self.rows) - before} runs finished, {len(self.failed)} failed, {left} ready to run")

    def choose(self, in_progress: list[Run]) -> Run | None:
        """The next run: the first that is ready and expected to end in time."""
        names = {run.name for run in in_progress}
        elapsed = time.monotonic() - self.started
        for run in self.plan.ready(self.rows, self.failed):
            budget = self.options.hours
            if run.name not in names and (
                budget is None or elapsed + seconds(run, self.rows) <= budget * 3600
            ):
                return run
        return None

    def report(self, run: Run, outcome: "Done | Failed") -> None:
        """Append the row of a finished run, or note why a run failed."""
        from benchmarks.study import table
        from benchmarks.study.workers import Failed

        minutes = (time.monotonic() - self.started) / 60
        if isinstance(outcome, Failed):
            self.failed[run.name] = outcome.reason
            print(f"{minutes:6.1f} min  {run.name}: failed: {outcome.reason}", file=sys.stderr, flush=True)
            return
        if outcome.scale is not None:
            table.add_scale(self.options.results / table.SCALES_FILE, outcome.scale)
        if self.archive and not self.archive.add(self.options.state / "logits" / f"{run.name}.npz"):
            print(f"No room left in {self.archive.folder} for {run.name}.", file=sys.stderr, flush=True)
        self.rows = [*self.rows, outcome.row]
        table.write_rows(self.path, self.rows)
        if self.archive:
            self.archive.copy_tables()
        row = outcome.row
        print(
            f"{minutes:6.1f} min  {run.name}: selection AP {float(row['selection_macro_ap']):.4f}, "
            f"test AP {float(row['test_macro_ap']):.4f}, {row['seconds']} s",
            flush=True,
        )


def pool(
    options: argparse.Namespace,
    plan: Plan,
    size: int,
    choose: Callable[[list[Run]], Run | None],
    report: "Report",
    logits: str = "logits",
) -> "Pool":
    """The workers, and where they write."""
    import os

    from benchmarks.study import table
    from benchmarks.study.workers import Pool, WorkerSettings

    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["OMP_NUM_THREADS"] = "1"
    scales = {
        backbone: table.read_scales(options.results / table.SCALES_FILE, backbone, size)
        for backbone in (plan.settings.backbone, *plan.big)
    }
    settings = WorkerSettings(
        options.state,
        options.device,
        options.commit or table.commit(),
        scales,
        options.state / logits,
        options.results / table.RUNS_FILE,
    )
    return Pool(settings, options.jobs, choose, report)


def rerun(options: argparse.Namespace) -> None:
    """Run a row of runs.csv again and compare.

    Raises:
        UserError: there is no such row, the run fails, or it gives other numbers.
    """
    from benchmarks.study import folds, table
    from benchmarks.study.workers import Done

    rows = table.read_rows(options.results / table.RUNS_FILE)
    row = next((row for row in rows if row["run"] == options.rerun), None)
    if row is None:
        raise UserError(f"{options.results / table.RUNS_FILE} has no run {options.rerun}.")
    data = folds.import_prepared(options.prepared, options.state)
    table.check_rows([row], data.sha256, options.results / table.RUNS_FILE)
    run, outcomes = run_of(row), []
    todo = [run]
    options.device, options.jobs = run.device, 1
    plan = Plan(replace(Settings(), backbone=run.backbone))
    pool(
        options,
        plan,
        data.size,
        lambda _: todo.pop() if todo else None,
        lambda _, one: outcomes.append(one),
        "rerun",
    ).run()
    outcome = outcomes[0]
    if not isinstance(outcome, Done):
        raise UserError(f"{run.name} failed: {outcome.reason}")
    for name in (*REPEATED, "seconds", "device", "torch", "commit"):
        print(
            f"{name:24}{row[name]:>20}{outcome.row[name]:>20}{'' if row[name] == outcome.row[name] else '  differs'}"
        )
    if any(row[name] != outcome.row[name] for name in REPEATED):
        raise UserError(
            f"{run.name} gave other numbers than its row. Compare device, torch and commit above."
        )


if __name__ == "__main__":
    try:
        with exit_with_message():
            main(parse())
    except KeyboardInterrupt:
        sys.exit("interrupted: start the same command again to go on")
