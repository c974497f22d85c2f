"""The section [flows] of ral.toml: how the flows run the stages, and whom they notify."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, get_args

from pydantic import Field

from ral.artifacts import Stage
from ral.config.base import Section
from ral.config.environment import Environment, load_environment

# All of them, in the order of the graph; a test compares them with dvc.yaml and tasks/dvc.yaml.
STAGES: tuple[Stage, ...] = get_args(Stage)

# The stage that is not in dvc.yaml.
APART: Stage = "manifest"


def address(stage: str) -> str:
    """The name by which DVC knows a stage in the project folder."""
    return f"tasks/dvc.yaml:{stage}" if stage == APART else stage


def stage_range(first: Stage, last: Stage) -> tuple[Stage, ...]:
    """The stages from `first` to `last`, both included."""
    return STAGES[STAGES.index(first) : STAGES.index(last) + 1]


class FlowsConfig(Section):
    """How the Prefect flows run the stages, and where notifications go."""

    repository: str | None = None
    """Folder or URL of the git repository that workspaces are checked out from; default: the current
    folder."""
    timeout_hours: dict[Stage, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Timeout in hours per stage name; stages not listed have no timeout."""
    retries: int = Field(default=2, ge=0)
    """Maximum number of retries of a stage after a retryable failure, such as a lost node."""
    retry_seconds: float = Field(default=60.0, ge=0)
    """Seconds before the first retry; doubled for each further one."""
    notify: str | None = None
    """Prefect block for notifications of failures and decisions, such as slack-webhook/ral. Prefect stores
    its URL as a secret."""
    keep: int = Field(default=14, ge=1)
    """Number of run folders (runs/<id>) to keep in a workspace."""
    push_git: str | None = None
    """URL of a git repository to push the record to after each run (branch nightly, releases)."""
    push_dvc: str | None = None
    """Name of a DVC remote of the project to push outputs to after each run."""


class FlowsEnvironment(Environment):
    """What ral.toml says, with the section of the flows."""

    flows: FlowsConfig = FlowsConfig()
    """How the flows run the stages, and whom they notify."""


def load_flows_environment(
    folder: Path = Path(), variables: Mapping[str, str] | None = None
) -> FlowsEnvironment:
    """Read ral.toml and the RAL_… variables; see `ral.config.environment.load_environment`."""
    return load_environment(folder, variables, FlowsEnvironment)
