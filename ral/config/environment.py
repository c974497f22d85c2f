"""Settings of this machine: ral.toml in the working folder, overridden by RAL_… environment variables.

    RAL_TRAINING_LAUNCHER=slurm RAL_TRAINING_SLURM_NODES=4 python -m tasks.train

These settings never change results; those that do are in params.yaml.
"""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, overload

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from ral.config.base import Section, explain
from ral.config.dask import DaskTarget
from ral.config.data import DataConfig
from ral.errors import UserError
from ral.files import private_folder, refuse_shared
from ral.suggest import did_you_mean

# Content of ral.toml before it is validated.
Toml: TypeAlias = dict[str, Any]

PREFIX = "RAL_"

# Sections of ral.toml with a reader of their own: flows.settings.
OTHER_SECTIONS = ("flows",)


def home() -> Path | None:
    """The home folder; None for a user without an account (`docker run --user`), whose HOME is unset or /."""
    try:
        path = Path.home()
    except RuntimeError:
        return None
    return None if path == Path("/") and not os.access(path, os.W_OK) else path


def _expand_home(value: Any) -> Any:
    """Expand ~ to the home folder."""
    if not isinstance(value, str):
        return value
    if value.startswith("~") and home() is None:
        raise ValueError("this user has no home folder, so ~ cannot be expanded: use an absolute path")
    return os.path.expanduser(value)


# Paths are strings in TOML and in environment variables.
File = Annotated[Path, Field(strict=False), BeforeValidator(_expand_home)]


class SlurmConfig(Section):
    """Resources requested from SLURM."""

    partition: str | None = None
    """Partition; default: the cluster's."""
    account: str | None = None
    """Account to charge; default: the user's."""
    nodes: int = Field(default=1, ge=1)
    """Number of nodes."""
    tasks_per_node: int = Field(default=1, ge=1)
    """Training processes per node; with GPUs, one per GPU."""
    gpus_per_node: int = Field(default=0, ge=0)
    """GPUs per node."""
    cpus_per_task: int | None = Field(default=None, ge=1)
    """Processor cores per training process; default: 8 with GPUs, otherwise the cluster's."""
    time: str | None = None
    """Time limit in SLURM's format (08:00:00); default: the partition's. Training saves a checkpoint and
    exits before it."""
    signal_seconds: int | None = Field(default=None, ge=1, le=65535)
    """Seconds before the time limit at which training is signalled to save a checkpoint and exit; default:
    training.grace and 60 more."""
    lines: list[str] = Field(default_factory=list)
    """Additional sbatch options, one per item, such as --constraint=a100."""

    @property
    def has_gpus(self) -> bool:
        """Whether GPUs are requested, by `gpus_per_node` or in `lines` (--gpus-per-task=1, --gres=gpu:4)."""
        return self.gpus_per_node > 0 or any(re.match(r"--gpus|-G|--gres=.*gpu", line) for line in self.lines)


class KubernetesConfig(Section):
    """Resources requested from Kubernetes with Kubeflow."""

    kind: Literal["TrainJob", "PyTorchJob"] = "TrainJob"
    """TrainJob (Kubeflow Trainer 2.2 or later) or PyTorchJob (the older training operator)."""
    runtime: str = "torch-distributed"
    """ClusterTrainingRuntime that a TrainJob refers to."""
    image: str = ""
    """Container image with this project's packages."""
    namespace: str = "default"
    """Namespace of the job."""
    nodes: int = Field(default=1, ge=1)
    """Number of pods."""
    processes_per_node: int = Field(default=1, ge=1)
    """Training processes per pod; with GPUs, one per GPU."""
    gpus_per_node: int = Field(default=0, ge=0)
    """GPUs per pod (nvidia.com/gpu)."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment variables of the pods, such as {NCCL_IB_HCA = "mlx5"}; not for secrets."""
    resources: dict[str, str | int] = Field(default_factory=dict)
    """Further resources per pod, such as {cpu = "32", memory = "256Gi", "rdma/hca" = 1}. cpu is a request,
    all others are limits."""
    claim: str = ""
    """PersistentVolumeClaim with the project folder and state_dir, mounted by every pod."""
    mount: str = ""
    """Mount path of the claim, here and in the pods; project folder and state_dir must be below it."""

    @property
    def has_gpus(self) -> bool:
        """Whether GPUs are requested, by `gpus_per_node` or in `resources` (amd.com/gpu)."""
        return self.gpus_per_node > 0 or any("gpu" in name for name in self.resources)

    @model_validator(mode="after")
    def _possible(self) -> "KubernetesConfig":
        for name in self.env:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or name in ("RAL_NODES", "RAL_PER_NODE"):
                raise ValueError(f"env: {name!r} is not a variable name, or is set by the launcher")
        if "nvidia.com/gpu" in self.resources:
            raise ValueError("resources: the number of GPUs is set by `gpus_per_node`")
        return self


class TrainingTarget(Section):
    """Where training runs, and how its processes are started."""

    launcher: Literal["local", "hostfile", "slurm", "kubernetes"] = "local"
    """What starts the processes: this machine, DeepSpeed's launcher (hostfile), SLURM or Kubernetes."""
    processes: int | None = Field(default=None, ge=1)
    """Number of processes of the local launcher; default: one per GPU, or one on the CPU."""
    grace: float | None = Field(default=None, ge=0)
    """Grace period in seconds for processes to save a checkpoint between SIGTERM and SIGKILL; default: 60 if
    they use GPUs, otherwise 6. A checkpoint has about 16 bytes per weight, 24 with EMA."""
    checkpoint_minutes: float = Field(default=10.0, ge=0)
    """Minutes between checkpoints of an unfinished training; 0: after every step."""
    keep: int = Field(default=2, ge=1)
    """Number of checkpoints to keep; more than one, since the latest may be damaged."""
    tensorboard: bool = False
    """Also log losses for TensorBoard, in runs/<id>/tensorboard; needs the extra `tensorboard`."""
    dvclive: bool = False
    """Also log losses with DVCLive, in runs/<id>/dvclive; needs the extra `dvclive`. Nothing is sent."""
    hostfile: File | None = None
    """DeepSpeed hostfile: one line `NAME slots=N` per machine, with N training processes."""
    ssh: bool = True
    """Whether the hostfile launcher starts the other machines through pdsh; if false, start each by hand."""
    port: int | None = Field(default=None, ge=1024, le=65535)
    """Rendezvous port where no scheduler provides one (local, hostfile); default: a free port."""
    slurm: SlurmConfig = SlurmConfig()
    """Resources requested from SLURM."""
    kubernetes: KubernetesConfig = KubernetesConfig()
    """Resources requested from Kubernetes."""


def default_state_dir() -> Path:
    """The default state folder, following the XDG base directory specification; ~/… for a user without a home."""
    base = os.environ.get("XDG_STATE_HOME", "")
    return (Path(base) if Path(base).is_absolute() else (home() or Path("~")) / ".local" / "state") / "ral"


class Environment(Section):
    """Where and how things run on this machine; never affects results."""

    state_dir: File = Field(default_factory=default_state_dir)
    """Private folder for checkpoints of unfinished training, decoded images and hashes of raw files; must
    be visible to all machines of a run."""
    data_root: str | None = None
    """Data folder on this machine; overrides data.root of params.yaml."""
    dask: DaskTarget = DaskTarget()
    """Where tables are checked and images decoded and packed."""
    training: TrainingTarget = TrainingTarget()
    """Where training runs, and how its processes are started."""

    def located(self, data: DataConfig) -> DataConfig:
        """`data` with data_root of this machine, if it is set."""
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
    """Read `folder`/ral.toml, if it exists, and RAL_… environment variables, which take precedence.

    If the user has no home folder, HOME is set to a folder in state_dir (libraries need it), and USER for DVC.

    Args:
        folder: the working folder.
        variables: environment variables; None: those of this process. Empty variables are ignored.
        model: the sections that the caller reads; those of other readers are ignored.

    Raises:
        UserError: ral.toml is not valid TOML; a key or variable is unknown or has a wrong value; state_dir is not
            set for a user without a home folder, or is refused by `check_state_dir`.
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
            except UserError:  # a later variable may complete it
                doubtful = doubtful or Path(name)
        elif name not in known:
            _refuse_unknown(name, list(known), model)
    environment = _validate(content, doubtful, model) if doubtful else environment
    if environment.state_dir.parts[:1] == ("~",):
        raise UserError(
            f"User id {os.getuid()} has no home folder for checkpoints and other state: "
            "set RAL_STATE_DIR (or state_dir in ral.toml) to a private folder."
        )
    check_state_dir(environment.state_dir)
    if variables is None and home() is None:
        _give_home(environment.state_dir)
    return environment


def check_state_dir(path: Path) -> None:
    """Refuse a state_dir that part of the pipeline could not use.

    The path is used in DVC configuration, git URLs, scheduler scripts and remote shells, where spaces and most
    punctuation have special meanings. The flows run in other folders, where a relative path would resolve differently.

    Raises:
        UserError: it is relative, has characters other than letters, digits, `/` and ._-+@=, or is writable by others.
    """
    forbidden = sorted(set(re.findall(r"[^\w.+@=/-]", str(path))))
    if forbidden or not path.is_absolute():
        problem = f"contains {' '.join(repr(sign) for sign in forbidden)}" if forbidden else "is relative"
        raise UserError(
            f"state_dir, the folder for checkpoints and other state, {problem}: {str(path)!r}. Set "
            "RAL_STATE_DIR (or state_dir "
            "in ral.toml) to an absolute path with only letters, digits and ._-+@=, such as /srv/ral."
        )
    refuse_shared(path)


def _give_home(state_dir: Path) -> None:
    """Set HOME (in the state folder) and USER for this process and its children."""
    try:
        os.environ["HOME"] = str(private_folder(private_folder(state_dir.absolute()) / "home"))
    except OSError as error:
        raise UserError(
            f"{error.filename}: {error.strerror}. Set RAL_STATE_DIR (or state_dir in ral.toml) to a folder "
            "that this user can write to."
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


def _read_toml(path: Path) -> Toml:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from None


def _validate(content: Toml, source: Path, model: type[Environment]) -> Environment:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(explain(error, model, source)) from None


def _set(content: Toml, key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        content = content.setdefault(section, {})
    content[name] = value


def _value(text: str, kind: Any) -> Any:
    """Parse a variable for its field: unchanged if the field is text, otherwise as a TOML value."""
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
    """Refuse an unknown variable that starts with the prefix of a section; all others are ignored."""
    for section, field in model.model_fields.items():
        start = f"{PREFIX}{section.upper()}_"
        if name.startswith(start) and isinstance(field.annotation, type):
            allowed = [other for other in known if other.startswith(start)]
            raise UserError(
                f"The environment variable {name} is unknown.{did_you_mean(name, allowed)} "
                f"Allowed: {', '.join(allowed)}."
            )
