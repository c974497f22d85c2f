"""The edge of every step: its command line, and errors as one clear message with exit code 1.

What failed is also left for programs, in runs/<id>/failure.json: {"step", "kind", "retry", "message"} (DVC
turns every exit code into 255). The file is absent when the step succeeds.
"""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Concatenate

from ral import runs
from ral.config.base import Parameters, load
from ral.errors import DISK_ERRORS, REMEDIES, Kind, UserError, exit_with_message, explain_os_error, plain
from ral.log import configure
from ral.processes import die_with_parent, ignore_termination_signals, on_termination_signal
from ral.records import StepFailure

# Option name -> (default path, what it is); the defaults are those of dvc.yaml.
Paths = Mapping[str, tuple[PurePath | str, str]]


def command(
    name: str,
    description: str | None,
    run: Callable[Concatenate[Parameters, ...], None],
    model: type[Parameters],
    paths: Paths,
    environment: Callable[[], object] | None = None,
) -> None:
    """Read a step's command line, and run and record the step.

    Args:
        name: of the step.
        description: what the step does; the module's docstring.
        run: does the work; called with the parameters, then the paths by name, and `environment` if that is given.
        model: the sections of the parameters that the step reads.
        paths: what `run` reads and writes.
        environment: reads the settings of this machine (an import of it here would make every step depend on them).
    """
    options = parse(description, paths)

    def start() -> None:
        given = {path: getattr(options, path) for path in paths}
        if environment is not None:
            given["environment"] = environment()
        run(load(options.params, model), **given)

    main(name, start)


def parse(
    description: str | None, paths: Paths, flags: Mapping[str, str] | None = None
) -> argparse.Namespace:
    """Read a step's command line.

    Args:
        description: what the step does; the module's docstring.
        paths: what the step reads and writes.
        flags: option name -> what it does; off unless given.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="parameters (params.yaml)")
    for name, (default, what) in paths.items():
        parser.add_argument(f"--{name}", type=Path, default=Path(default), help=f"{what} ({default})")
    for name, what in (flags or {}).items():
        parser.add_argument(f"--{name}", action="store_true", help=what)
    return parser.parse_args()


def main(name: str, step: Callable[[], None], record: bool = True) -> None:
    """Run a step and record it; what the user can mend ends as `error: ...` and exit code 1, a bug keeps its trace.

    Args:
        name: of the step.
        step: does the work.
        record: whether this is a run; a look at what would be run leaves nothing behind.
    """
    if "DVC_STAGE" in os.environ:  # DVC, when it is killed, leaves the stages it started
        # Training waits in Python, so it hears a signal at once and can save; other steps may be deep in a library.
        die_with_parent(signal.SIGTERM if name == "train" else signal.SIGKILL)
        runs.share_with_siblings()  # the stages of one `dvc repro` are one run
    on_termination_signal(_asked_to_end)
    configure()
    with exit_with_message():
        try:
            with _recorded(name) if record else contextlib.nullcontext():
                step()
        except (KeyboardInterrupt, SystemExit) as end:
            with contextlib.suppress(OSError):  # the terminal may have gone
                print(f"interrupted: {_how_to_resume(end)}", file=sys.stderr, flush=True)
            sys.exit(130 if isinstance(end, KeyboardInterrupt) else end.code)


def _asked_to_end(number: int, frame: object) -> None:
    """Leave by an exception, so that drafts are removed and the record is closed; asking twice changes nothing."""
    ignore_termination_signals()
    sys.exit(128 + number)


def _how_to_resume(end: KeyboardInterrupt | SystemExit) -> str:
    """What a person does after an interruption; a step that knows more (training) notes it on the exception."""
    notes = getattr(end, "__notes__", [])
    return notes[-1] if notes else "The step was asked to end. Rerun the same command to resume."


@contextlib.contextmanager
def _recorded(name: str) -> Iterator[None]:
    """Record the step in run.json, and what failed in failure.json."""
    path = runs.folder() / runs.FAILURE_FILE
    path.unlink(missing_ok=True)
    try:
        with runs.track_step(name):
            yield
    except BaseException as error:
        kind, retry, message = _classify(error)
        with contextlib.suppress(OSError):  # the disk may be full; the error itself is what must be told
            StepFailure(step=name, kind=kind, retry=retry, message=message).write(path)
        raise


def _classify(error: BaseException) -> tuple[Kind, bool, str]:
    """Kind, whether a retry can help, and the message of a failure."""
    if isinstance(error, UserError):
        return error.kind, error.retry, str(error)
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return "interrupted", True, _how_to_resume(error)
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return "disk", False, explain_os_error(error)
    if isinstance(error, OSError) and error.errno in REMEDIES:
        return "input", False, explain_os_error(error)
    return "bug", False, plain(f"{type(error).__name__}: {error}")
