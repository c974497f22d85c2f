"""The section [flows] of ral.toml: how the flows run the stages, and whom they notify."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ral.config.base import Section
from ral.config.environment import Environment, load_environment

Stage = Literal[
    "locate", "phantom", "manifest", "validate", "preprocess", "train", "explain", "evaluate", "report"
]


class FlowsConfig(Section):
    """How the flows run the stages, and whom they notify."""

    repository: str | None = None
    """Folder or address of the project's git repository, from which workspaces are checked out; the folder the flow runs in if absent."""
    timeout_hours: dict[Stage, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Hours after which a stage is ended, by its name; a stage that is not named may take any time."""
    retries: int = Field(default=2, ge=0)
    """How often a stage is tried again after a failure that a retry can mend, such as a lost node."""
    retry_seconds: float = Field(default=60.0, ge=0)
    """Seconds before the first retry; each further one waits twice as long."""
    notify: str | None = None
    """Prefect notification block that is told of failures and decisions, such as slack-webhook/ral; its address is a secret that Prefect keeps."""
    keep: int = Field(default=14, ge=1)
    """Folders of runs (runs/<id>) kept in a workspace."""
    push_git: str | None = None
    """Address of a git repository that gets the record (branch nightly, releases) after each night; none if absent."""
    push_dvc: str | None = None
    """Name of a DVC remote of the project that gets the night's outputs; none if absent."""


class FlowsEnvironment(Environment):
    """What ral.toml says, with the section of the flows."""

    flows: FlowsConfig = FlowsConfig()
    """How the flows run the stages, and whom they notify."""


def load_flows_environment(
    folder: Path = Path(), variables: Mapping[str, str] | None = None
) -> FlowsEnvironment:
    """Read ral.toml and the RAL_… variables; see `ral.config.environment.load_environment`."""
    return load_environment(folder, variables, FlowsEnvironment)
