"""The table of the commands of `ral`, and its exit codes; importing it imports no command."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Command:
    """A command of `ral`."""

    entry: str
    """`module:function`; the function takes the arguments after the command's name and returns the exit code."""
    summary: str
    """What it does, in one line of `ral --help`."""
    words: tuple[str, ...] = ()
    """Its subcommands, for completion; a test compares those of `release` with its parser."""

    def load(self) -> Callable[[list[str]], int]:
        """Import the module; returns the function."""
        module, function = self.entry.split(":")
        loaded: Callable[[list[str]], int] = getattr(import_module(module), function)
        return loaded


RELEASE = (
    "list", "show", "promote", "rollback", "ledger", "open-sealed", "predict", "rescore", "judge", "register", "forget",
    "prune",
)  # fmt: skip

COMMANDS: Mapping[str, Command] = {
    "predict": Command(
        "ral.inference.predict:main", "Findings of images: PNG, JPEG, DICOM, folders, archives"
    ),
    "evaluate": Command(
        "ral.external.command:main", "External validation: a model on another labelled set, as released"
    ),
    "export": Command(
        "ral.export:main", "Write a model for timm, ONNX Runtime or torch.export", ("timm", "onnx", "torch")
    ),
    "release": Command(
        "ral.release.__main__:main", "List, promote, roll back and use released models", RELEASE
    ),
    "config": Command(
        "ral.cli.config:main", "Check params.yaml, or print its JSON schema", ("check", "schema")
    ),
    "doctor": Command("ral.cli.doctor:main", "Check this machine and its packages"),
    "run": Command(
        "ral.cli.project:run", "Run the pipeline of the project folder (python -m flows.train_ral)"
    ),
    "compare": Command(
        "ral.cli.project:compare", "Run and compare a grid of experiments (python -m flows.compare)"
    ),
    "completion": Command("ral.cli.completion:main", "Print the completion script of a shell", ("bash",)),
}

# Exit code -> meaning; docs/cli.md lists the same.
OK, FAILED, USAGE, PARTIAL, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 3, 130, 141
EXIT_CODES: Mapping[int, str] = {
    OK: "success",
    FAILED: "error; the message says what to do. `ral doctor`: something must be mended",
    USAGE: "wrong arguments",
    PARTIAL: "finished, but some inputs could not be read; the output names them",
    INTERRUPTED: "interrupted (Ctrl-C)",
    BROKEN_PIPE: "the reader of the output has gone, such as `head`",
}
