"""Checks of the training engine on one GPU: accuracy, memory and speed of each part.

    python -m benchmarks.gpu                   # all checks on one GPU, 8 minutes
    python -m benchmarks.gpu kernel zero       # these checks only
    python -m benchmarks.gpu --cpu             # the checks that apply to a CPU, small shapes: 2 minutes on two cores
    python -m benchmarks.gpu --quick           # the cheap checks with small shapes, within a minute

Checks, which are in `benchmarks.gpu_checks`:

{checks}

Each check runs in a separate process with a time limit, so one that fails, crashes or hangs does not affect
the others. Images per second are checked only on an H100 or H200, which have limits. Prints a table and, as
the last line, JSON: `device`, `torch`, `failed` (names of checks), `not_applicable` (name: reason), and
`checks` with the figures of each. The exit code is 1 if a check failed. NCCL and synchronised batch
statistics need several GPUs and are not checked.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Required, TypedDict

from ral.processes import kill_group, on_termination_signal

ROOT = Path(__file__).parent.parent

OK, FAILED, NOT_APPLICABLE = "ok", "failed", "not applicable"


class Row(TypedDict):
    """A row of the table."""

    what: str
    expected: str
    measured: Any
    """A number, text or a list."""
    result: str
    reason: str


class Entry(TypedDict, total=False):
    """The outcome of a check in the JSON."""

    result: Required[str]
    seconds: float
    figures: dict[str, object]
    """Row -> what it measured."""
    reason: str


@dataclass(frozen=True)
class Check:
    """One check, a function of the same name in `benchmarks.gpu_checks`."""

    about: str
    limit: float
    """Timeout in seconds."""
    gpu_only: str = ""
    """Why it does not apply to a CPU; empty if it does."""
    quick: bool = True
    """Whether it is cheap enough for --quick."""


CHECKS = {
    "kernel": Check("gradients of all losses against float64; 2.3 billion logits", 120),
    "autocast": Check("layers compute in bfloat16 in training, ZeRO stages 0, 2 and 3", 120),
    "step": Check(
        "waits for the GPU and kernel launches of an optimizer step", 180, "a CPU has no stream to wait for"
    ),
    "losses": Check("RAL against its eager and its compiled form: time, memory, error", 240),
    "reproduce": Check("two trainings of an epoch on one GPU: the same bits, whole and compiled", 150),
    "speed": Check(
        "training against a bare torch loop; images per second",
        240,
        "benchmarks.engine compares them on a CPU",
        False,
    ),
    "compiled": Check(
        "compiled training from shards against the authors' recipe",
        240,
        "it is rated on GPUs only",
        False,
    ),
    "compile": Check("graphs of torch.compile, and the speed of the second batch size", 240, quick=False),
    "zero": Check("ZeRO stages 0 to 3 with and without micro-batches: the same losses", 150),
    "score": Check(
        "images per second and memory of scoring 512 px images",
        120,
        "memory and speed of a GPU are its subject",
    ),
    "training": Check("a complete training: bfloat16, compiled, EMA, second phase", 180),
    "resume": Check("a training interrupted by SIGTERM, then resumed", 300, quick=False),
    "fallback": Check(
        "the losses without a C compiler and with an empty Triton cache", 90, "Triton runs on GPUs only"
    ),
}

# Additional environment variables of each check.
ENVIRONMENT = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


def run_child(
    name: str,
    options: Mapping[str, str | bool | None],
    environment: dict[str, str],
    limit: float,
    on_row: Callable[[Row], None] = lambda _: None,
) -> tuple[list[Row], float]:
    """Run one check in a separate process.

    Args:
        name: a key of `CHECKS`, or "device".
        options: of `benchmarks.gpu_checks.Setting`, without `folder`.
        environment: additional environment variables.
        limit: seconds after which the process and its children are killed.
        on_row: called with each row as it arrives, so that an interrupted run has shown what it measured.

    Returns:
        The rows of the check, with a failed one at the end if the process failed; seconds.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ral-gpu-") as folder:
        spec, output, log = (Path(folder) / part for part in ("spec.json", "rows.jsonl", "log.txt"))
        spec.write_text(
            json.dumps(
                {"check": name, "output": str(output), **options, "folder": folder, "parent": os.getpid()}
            )
        )
        output.touch()
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.gpu_checks", str(spec)],
                cwd=ROOT, env=os.environ | environment, stdin=subprocess.DEVNULL, stdout=stream,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            rows: list[Row] = []
            try:
                while process.poll() is None and time.monotonic() - start < limit:
                    time.sleep(0.2)
                    _read_rows(output, rows, on_row)
                code = process.poll()
                problem = (
                    f"still running after {limit:g} s, and killed"
                    if code is None
                    else _describe_exit(code, log)
                )
            finally:
                kill_group(process)
        _read_rows(output, rows, on_row)
    if problem:
        rows.append(
            {
                "what": "runs to its end",
                "expected": "yes",
                "measured": "no",
                "result": FAILED,
                "reason": problem,
            }
        )
        on_row(rows[-1])
    return rows, round(time.monotonic() - start, 1)


def _read_rows(output: Path, rows: list[Row], on_row: Callable[[Row], None]) -> None:
    """Append the rows that have been written since the last call."""
    lines = output.read_text(encoding="utf-8").split("\n")[
        :-1
    ]  # a killed process may leave an incomplete line
    for line in lines[len(rows) :]:
        rows.append(json.loads(line))
        on_row(rows[-1])


def _describe_exit(code: int, log: Path) -> str:
    """Why a process failed; empty if it succeeded."""
    if code == 0:
        return ""
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    print(text[-4000:], file=sys.stderr)
    last = text.splitlines()[-1] if text else "it wrote nothing"
    return f"{f'killed by signal {-code}' if code < 0 else f'exit code {code}'}: {last[:200]}"


def judge(rows: list[Row]) -> str:
    """Result of a check: one failed row fails it; without a judged row it is not applicable."""
    results = {row["result"] for row in rows}
    return next((result for result in (FAILED, OK) if result in results), NOT_APPLICABLE)


def run_check(name: str, args: argparse.Namespace, cpu: bool, on_row: Callable[[Row], None]) -> Entry:
    """Run a check; returns its entry in the JSON."""
    check = CHECKS[name]
    reason = ""
    if cpu:
        reason = check.gpu_only
    if args.quick and not args.checks and not check.quick and not reason:
        reason = f"skipped by --quick; to run it: python -m benchmarks.gpu --quick {name}"
    if reason:
        row: Row = {
            "what": check.about,
            "expected": "",
            "measured": "",
            "result": NOT_APPLICABLE,
            "reason": reason,
        }
        on_row(row)
        return {"result": NOT_APPLICABLE, "reason": reason}
    environment = ENVIRONMENT | ({"CUDA_VISIBLE_DEVICES": ""} if cpu else {})
    options = {"small": cpu or args.quick, "backbone": args.backbone}
    rows, seconds = run_child(name, options, environment, args.limit or check.limit, on_row)
    reasons = [f"{row['what']}: {row['reason']}" for row in rows if row["result"] == FAILED and row["reason"]]
    figures = {row["what"]: row["measured"] for row in rows if row["result"] != NOT_APPLICABLE}
    entry: Entry = {"result": judge(rows), "seconds": seconds, "figures": figures}
    if reasons:
        entry["reason"] = "; ".join(reasons)
    return entry


def format_row(name: str, row: Row) -> str:
    """A line of the table."""
    measured = f"{row['measured']:.4g}" if isinstance(row["measured"], float) else str(row["measured"])
    reason = f" ({row['reason']})" if row["reason"] else ""
    return f"{name:10}{row['what']:44}{row['expected']:>26}{measured:>16}  {row['result']}{reason}"


def parse() -> argparse.Namespace:
    """The command line."""
    checks = "\n".join(f"    {name:10}{check.about}" for name, check in CHECKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=(__doc__ or "").replace("{checks}", checks),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("checks", nargs="*", metavar="CHECK", help="checks to run; default: all")
    parser.add_argument("--cpu", action="store_true", help="do not use the GPU; small shapes")
    parser.add_argument("--quick", action="store_true", help="cheap checks, small shapes; also on a CPU")
    parser.add_argument("--backbone", help="timm model that replaces each check's own")
    parser.add_argument("--limit", type=float, help="timeout in seconds that replaces each check's own")
    parser.add_argument("--out", type=Path, help="file to which the table and the JSON are also written")
    args = parser.parse_args()
    unknown = sorted(set(args.checks) - set(CHECKS))
    if unknown:
        parser.error(f"no such check: {', '.join(unknown)}. Checks: {', '.join(CHECKS)}.")
    return args


def main() -> int:
    """Run the checks and print."""
    args = parse()
    on_termination_signal(lambda number, _: sys.exit(128 + number))  # the running check is killed on exit
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if args.cpu else {}
    machine, _ = run_child("device", {"small": True, "backbone": None}, ENVIRONMENT | hidden, 120)
    info = {row["what"]: row["measured"] for row in machine}
    if judge(machine) == FAILED:
        sys.exit(f"The checks cannot run here: {machine[-1]['reason']}")
    cpu = info["kind"] == "cpu"
    if cpu and not (args.cpu or args.quick):
        sys.exit("torch finds no GPU. For the checks that apply to a CPU: python -m benchmarks.gpu --cpu")
    printed: list[str] = []

    def show(text: str) -> None:
        print(text, flush=True)
        printed.append(text)
        if args.out is not None:  # at once, so that a run that is interrupted leaves what it measured
            args.out.write_text("\n".join(printed) + "\n", encoding="utf-8")

    show(f"torch {info['torch']}, Python {info['python']}, {info['device']}")
    show(f"{'check':10}{'':44}{'expected':>26}{'measured':>16}  result")
    entries: dict[str, Entry] = {}
    for name in dict.fromkeys(args.checks or CHECKS):
        entries[name] = run_check(name, args, cpu, lambda row, name=name: show(format_row(name, row)))  # type: ignore[misc]
    failed = [name for name, entry in entries.items() if entry["result"] == FAILED]
    skipped = {
        name: entry.get("reason", "no part of it applies here")
        for name, entry in entries.items()
        if entry["result"] == NOT_APPLICABLE
    }
    header = {name: info[name] for name in ("device", "torch", "python")}
    show(json.dumps({**header, "failed": failed, "not_applicable": skipped, "checks": entries}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
