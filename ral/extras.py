"""The extras of this package: the modules that each brings, which of them are missing, and how to install them."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from ral.errors import UserError

# Extra -> modules that it adds to the base package; a test compares them with pyproject.toml. An extra that includes
# others comes after them, so that `extra_of` names the smallest one.
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "train": ("deepspeed",),
    "data": ("dask", "great_expectations", "isal"),
    "dicom": ("pydicom", "gdcm"),
    "report": ("jinja2", "markupsafe", "matplotlib"),
    "cluster": ("distributed",),
    "slurm": ("dask_jobqueue",),
    "tensorboard": ("tensorboard",),
    "dvclive": ("dvclive",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "pipeline": ("dvc", "dvc_data", "fastapi", "gto", "hydra", "prefect", "rich", "torchvision"),
}

# What `pipeline` includes.
PIPELINE = ("train", "data", "report", "pipeline")


def missing(*extras: str) -> list[str]:
    """Modules of some extras that are not installed."""
    return [name for extra in extras for name in EXTRAS[extra] if find_spec(name) is None]


def extra_of(module: str) -> str | None:
    """The extra that brings a module, such as `gto.api`; None if none of them does."""
    top = module.split(".")[0]
    return next((extra for extra, modules in EXTRAS.items() if top in modules), None)


def install_command(extra: str) -> str:
    """The command that installs an extra: with the pinned versions in a checkout, otherwise from the index."""
    if in_checkout():
        return f"pip install -c constraints.txt -e '.[{extra}]'"
    return f"pip install 'ral[{extra}]'"


def in_checkout() -> bool:
    """Whether this package runs from a checkout of the project, rather than from a wheel."""
    folder = Path(__file__).parents[1]
    return all((folder / name).is_file() for name in ("constraints.txt", "pyproject.toml"))


def require(extra: str, what: str) -> None:
    """Refuse what needs an extra that is not installed.

    Args:
        extra: a key of `EXTRAS`; with `pipeline`, what that includes is required too.
        what: what needs it, as the subject of the message, such as "`ral run`".

    Raises:
        UserError: the message names the extra and the command that installs it.
    """
    absent = missing(*(PIPELINE if extra == "pipeline" else (extra,)))
    if absent:
        raise UserError(explain_missing(extra, what, absent))


def explain_missing(extra: str, what: str, absent: list[str]) -> str:
    """The message about an extra that is not installed; arguments as for `require`, and the missing modules."""
    verb = "is" if len(absent) == 1 else "are"
    return (
        f"{what} needs the extra `{extra}` ({', '.join(absent)} {verb} not installed). "
        f"Install it: {install_command(extra)}"
    )
