"""Where and how things run on this machine: ral.toml in the working folder, and RAL_… variables over it.

    RAL_TRAINING_LAUNCHER=slurm RAL_TRAINING_SLURM_NODES=4 python -m tasks.train

Nothing here changes a result; what does is in params.yaml.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, overload

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from ral.config.base import Section, explain
from ral.config.dask import DaskTarget
from ral.config.data import DataConfig
from ral.errors import UserError
from ral.files import private_folder, refuse_shared

PREFIX = "RAL_"

# Sections of ral.toml with a reader of their own: flows.settings.
OTHER_SECTIONS = ("flows",)


def home() -> Path | None:
    """The user's own folder; None for a user that the system does not know (`docker run --user`): HOME is absent or /."""
    try:
        found = Path.home()
    except RuntimeError:
        return None
    return None if found == Path("/") and not os.access(found, os.W_OK) else found


def _own_folder(value: Any) -> Any:
    """Put the user's own folder for ~."""
    if not isinstance(value, str):
        return value
    if value.startswith("~") and home() is None:
        raise ValueError("this user has no home folder, so ~ is no place: write the whole path")
    return os.path.expanduser(value)


# A path in TOML or in a variable is text.
File = Annotated[Path, Field(strict=False), BeforeValidator(_own_folder)]


class SlurmConfig(Section):
    """What is asked of SLURM."""

    partition: str | None = None
    """Partition; the cluster's default if absent."""
    account: str | None = None
    """Account that is charged; the user's default if absent."""
    nodes: int = Field(default=1, ge=1)
    """Machines."""
    tasks_per_node: int = Field(default=1, ge=1)
    """Training processes per machine; with GPUs, one for each."""
    gpus_per_node: int = Field(default=0, ge=0)
    """GPUs per machine."""
    cpus_per_task: int | None = Field(default=None, ge=1)
    """Processor cores per training process; the cluster's default if absent."""
    time: str | None = None
    """Time limit as SLURM writes it (08:00:00); the partition's if absent. Training saves and ends before it."""
    signal_seconds: int = Field(default=120, ge=1, le=65535)
    """Seconds before the time limit at which training is asked to save a checkpoint."""
    lines: list[str] = Field(default_factory=list)
    """Further options of sbatch, such as --constraint=a100, one each."""


class KubernetesConfig(Section):
    """What is asked of Kubernetes with Kubeflow."""

    kind: Literal["TrainJob", "PyTorchJob"] = "TrainJob"
    """TrainJob of Kubeflow Trainer 2.2 or later, or PyTorchJob of the older training operator."""
    runtime: str = "torch-distributed"
    """ClusterTrainingRuntime that a TrainJob refers to."""
    image: str = ""
    """Container image with this project's packages."""
    namespace: str = "default"
    """Namespace of the job."""
    nodes: int = Field(default=1, ge=1)
    """Pods."""
    processes_per_node: int = Field(default=1, ge=1)
    """Training processes per pod; with GPUs, one for each."""
    gpus_per_node: int = Field(default=0, ge=0)
    """GPUs per pod."""
    claim: str = ""
    """PersistentVolumeClaim with the project's folder and state_dir; every pod mounts it."""
    mount: str = ""
    """Where the claim is mounted, here and in the pods; the project's folder and state_dir lie in it."""


class TrainingTarget(Section):
    """Where training runs, and how its processes are started."""

    launcher: Literal["local", "hostfile", "slurm", "kubernetes"] = "local"
    """Who starts the processes: this machine, DeepSpeed's launcher, SLURM or Kubernetes."""
    processes: int | None = Field(default=None, ge=1)
    """Processes of the local launcher; if absent one per GPU, or one on the processor."""
    grace: float = Field(default=6.0, ge=0)
    """Seconds that processes get to save a checkpoint between being asked to end and being killed."""
    checkpoint_minutes: float = Field(default=10.0, ge=0)
    """Minutes between two checkpoints of unfinished training; 0 saves after every step."""
    keep: int = Field(default=2, ge=1)
    """Checkpoints kept; more than one, since the newest may be damaged."""
    tensorboard: bool = False
    """Whether the losses are written for TensorBoard as well, into runs/<id>/tensorboard; needs the extra `tensorboard`."""
    hostfile: File | None = None
    """DeepSpeed's hostfile: a line `NAME slots=N` per machine, with N training processes."""
    ssh: bool = True
    """Whether the hostfile launcher starts the other machines through pdsh; if not, start each by hand."""
    port: int | None = Field(default=None, ge=1024, le=65535)
    """Port at which processes meet where no scheduler gives one (local, hostfile); if absent a free one."""
    slurm: SlurmConfig = SlurmConfig()
    """What is asked of SLURM."""
    kubernetes: KubernetesConfig = KubernetesConfig()
    """What is asked of Kubernetes."""


def default_state_dir() -> Path:
    """ral's folder among the user's state, as the XDG rules have it; below ~ for a user without a home."""
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else (home() or Path("~")) / ".local" / "state") / "ral"


class Environment(Section):
    """Where and how things run; never what comes out."""

    state_dir: File = Field(default_factory=default_state_dir)
    """Private folder for checkpoints of unfinished training, decoded images and hashes of raw files; all machines of a run must see it."""
    data_root: str | None = None
    """Data folder on this machine, instead of data.root in params.yaml."""
    dask: DaskTarget = DaskTarget()
    """Where tables are checked, and images decoded and packed."""
    training: TrainingTarget = TrainingTarget()
    """Where training runs, and how its processes are started."""

    def located(self, data: DataConfig) -> DataConfig:
        """`data` with this machine's folder."""
        if self.data_root is None:
            return data
        return data.model_copy(update={"root": os.path.expanduser(self.data_root)})


EnvironmentT = TypeVar("EnvironmentT", bound=Environment)


@overload
def load_environment(folder: Path = ..., variables: Mapping[str, str] | None = ...) -> Environment: ...
@overload
def load_environment(
    folder: Path, variables: Mapping[str, str] | None, model: type[EnvironmentT]
) -> EnvironmentT: ...
def load_environment(
    folder: Path = Path(), variables: Mapping[str, str] | None = None, model: type[Environment] = Environment
) -> Environment:
    """Read `folder`/ral.toml, if there is one, and the RAL_… variables, which win.

    A process whose user has no home gets one in state_dir: libraries ask for it, and DVC for a user's name.

    Args:
        folder: the working folder.
        variables: environment variables; those of this process if None. An empty one counts as not set.
        model: the sections that the caller reads; those of other readers are ignored.

    Raises:
        UserError: ral.toml is no TOML; a key or variable is unknown or has a wrong value; there is no place for
            state_dir, or the one that is named is of no use (`check_state_dir`).
    """
    path = folder / "ral.toml"
    content = _read_toml(path) if path.exists() else {}
    for name in OTHER_SECTIONS:
        if name not in model.model_fields:
            content.pop(name, None)
    environment = _validate(content, path, model)
    known = {variable_name(key): (key, kind) for key, kind in keys(model)}
    doubtful: Path | None = None
    for name, text in sorted((os.environ if variables is None else variables).items()):
        if name in known and text:
            key, kind = known[name]
            _set(content, key, _value(text, kind))
            try:
                environment = _validate(content, Path(name), model)
            except UserError:  # a variable that comes later may belong to it
                doubtful = doubtful or Path(name)
        elif name not in known:
            _refuse_unknown(name, list(known), model)
    environment = _validate(content, doubtful, model) if doubtful else environment
    if environment.state_dir.parts[:1] == ("~",):
        raise UserError(
            f"The user with the number {os.getuid()} has no home folder, so there is no place for checkpoints and other state: "
            "set RAL_STATE_DIR (or state_dir in ral.toml) to a private folder."
        )
    check_state_dir(environment.state_dir)
    if variables is None and home() is None:
        _give_home(environment.state_dir)
    return environment


def check_state_dir(path: Path) -> None:
    """Refuse a place for state that some part of the pipeline could not use.

    The path goes into configurations of DVC, addresses of git, scripts of schedulers and shells on other machines, which
    give meanings to blanks and most signs; and the flows work in other folders, where a relative one would be another.

    Raises:
        UserError: it is relative, has other characters than letters, digits and ._-+@=, or others may write to it.
    """
    odd = sorted(set(re.findall(r"[^\w.+@=/-]", str(path))))
    if odd or not path.is_absolute():
        problem = f"has {' '.join(repr(sign) for sign in odd)} in it" if odd else "is relative"
        raise UserError(
            f"state_dir, the folder for checkpoints and other state, {problem}: {str(path)!r}. Set RAL_STATE_DIR (or state_dir "
            "in ral.toml) to a whole path of letters, digits and ._-+@= only, such as /srv/ral."
        )
    refuse_shared(path)


def _give_home(state_dir: Path) -> None:
    """A home in the private folder, and a name, for this process and those that it starts."""
    try:
        os.environ["HOME"] = str(private_folder(private_folder(state_dir.absolute()) / "home"))
    except OSError as error:
        raise UserError(
            f"{error.filename}: {error.strerror}. Set RAL_STATE_DIR (or state_dir in ral.toml) to a folder that this user may write."
        ) from None
    os.environ.setdefault("USER", str(os.getuid()))


def keys(model: type[Section] = Environment, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of ral.toml (`training.slurm.nodes`) with its type."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from keys(field.annotation, f"{prefix}{name}.")
        else:
            metadata = field.metadata
            yield f"{prefix}{name}", Annotated[field.annotation, *metadata] if metadata else field.annotation


def variable_name(key: str) -> str:
    """The environment variable of a key: `training.slurm.nodes` is RAL_TRAINING_SLURM_NODES."""
    return PREFIX + key.replace(".", "_").upper()


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None


def _validate(content: dict[str, Any], source: Path, model: type[Environment]) -> Environment:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(explain(error, model, source)) from None


def _set(content: dict[str, Any], key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        content = content.setdefault(section, {})
    content[name] = value


def _value(text: str, kind: Any) -> Any:
    """A variable's text as its field wants it: as it stands where that is text, else as a TOML value."""
    try:
        TypeAdapter(kind, config=ConfigDict(strict=True)).validate_python(text)
        return text
    except ValidationError:
        pass
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _refuse_unknown(name: str, known: list[str], model: type[Environment]) -> None:
    """Refuse a variable that begins like a section's but names no key; others belong to someone else."""
    for section, field in model.model_fields.items():
        start = f"{PREFIX}{section.upper()}_"
        if name.startswith(start) and isinstance(field.annotation, type):
            allowed = [other for other in known if other.startswith(start)]
            near = difflib.get_close_matches(name, allowed, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise UserError(
                f"The environment variable {name} is unknown.{hint} Allowed: {', '.join(allowed)}."
            )
