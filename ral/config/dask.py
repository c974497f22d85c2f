"""Where Dask workers run: threads of this process, local processes, a SLURM cluster, or an existing scheduler."""

from typing import Literal

from pydantic import Field, model_validator

from ral.config.base import Section


class DaskTarget(Section):
    """Where validate and preprocess do their work; a property of the machine that never affects outputs."""

    target: Literal["threads", "local", "slurm", "address"] = "threads"
    """Dask backend. threads: this process. local: processes on this machine. slurm: SLURM jobs submitted
    for the step. address: an existing scheduler. All but threads need a shared file system and the
    extra `cluster` (slurm: `slurm`)."""
    workers: int | None = Field(default=None, ge=1)
    """Number of threads, processes or jobs; null: one per processor core (slurm: 4; address: as many as
    the scheduler has)."""
    memory: str = Field(default="4GiB", pattern=r"^\d+(?:\.\d+)?\s*(?:[kMGT]i?B)$")
    """Memory limit per worker process or job (local, slurm), such as 4GiB."""
    address: str | None = Field(default=None, pattern=r"^(?:tcp|tls|ucx|ws|wss)://\S+$")
    """Scheduler address, such as tcp://node1:8786 (address only)."""
    queue: str | None = None
    """SLURM partition; null: the cluster's default."""
    account: str | None = None
    """SLURM account; null: the user's default."""
    walltime: str = Field(default="04:00:00", pattern=r"^(?:\d+-)?\d{1,2}:\d{2}:\d{2}$")
    """Time limit of a SLURM job. Images packed before the limit are not packed again."""
    interface: str | None = None
    """Network interface for traffic between SLURM nodes, such as ib0; null: Dask chooses."""
    directives: list[str] = Field(default_factory=list)
    """Additional SLURM directives without `#SBATCH`, such as `--qos=low`."""
    setup: list[str] = Field(default_factory=list)
    """Shell commands that a SLURM job runs before its worker starts, such as `module load python`."""
    wait: int = Field(default=600, ge=1)
    """Seconds to wait for the first worker (slurm, address)."""

    @model_validator(mode="after")
    def _address_belongs_to_its_target(self) -> "DaskTarget":
        if (self.target == "address") != (self.address is not None):
            raise ValueError("target `address` and the key address require each other: set both or neither")
        return self
