"""Where Dask's workers run: threads of this process, processes here, a SLURM cluster, or a scheduler that runs already."""

from typing import Literal

from pydantic import Field, model_validator

from ral.config.base import Section


class DaskTarget(Section):
    """Where the work of the steps validate and preprocess is done; a fact of the machine, which changes no byte of any output."""

    target: Literal["threads", "local", "slurm", "address"] = "threads"
    """threads: of this process. local: processes of this machine. slurm: jobs that are queued for it. address: a
    scheduler that runs already. All but threads need a disk that every worker sees, and the extra `cluster` (slurm:
    `slurm`)."""
    workers: int | None = Field(default=None, ge=1)
    """Threads, processes or jobs; null means the processor's cores (slurm: 4; address: those that the scheduler has)."""
    memory: str = Field(default="4GiB", pattern=r"^\d+(?:\.\d+)?\s*(?:[kMGT]i?B)$")
    """Memory of a worker process or job (local, slurm), such as 4GiB."""
    address: str | None = Field(default=None, pattern=r"^(?:tcp|tls|ucx|ws|wss)://\S+$")
    """Address of the scheduler, such as tcp://node1:8786 (address only)."""
    queue: str | None = None
    """SLURM's partition; null is the cluster's default."""
    account: str | None = None
    """SLURM's account; null is the user's default."""
    walltime: str = Field(default="04:00:00", pattern=r"^(?:\d+-)?\d{1,2}:\d{2}:\d{2}$")
    """Longest time of a SLURM job. What a job has packed before it ended is not done again."""
    interface: str | None = None
    """Network interface over which SLURM's nodes talk, such as ib0; null lets Dask choose."""
    directives: list[str] = Field(default_factory=list)
    """More lines for the head of the SLURM job, without `#SBATCH`, such as `--qos=low`."""
    setup: list[str] = Field(default_factory=list)
    """Shell lines that a SLURM job runs before its worker starts, such as `module load python`."""
    wait: int = Field(default=600, ge=1)
    """Seconds to wait for the first worker (slurm, address)."""

    @model_validator(mode="after")
    def _address_belongs_to_its_target(self) -> "DaskTarget":
        if (self.target == "address") != (self.address is not None):
            raise ValueError("target `address` and the key address go together: set both or neither")
        return self
