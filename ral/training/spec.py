"""The specification of a training: what the step train writes for its ranks to read."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ral.config.train import TrainParams
from ral.files import read_json, write_json


class TrainSpec(BaseModel):
    """A training. Paths are absolute: ranks may run on other machines."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    params: TrainParams
    prepared: Path
    """Folder of the prepared images."""
    out: Path
    """Folder that rank 0 writes the outputs to."""
    run: Path
    """Folder of the run, for what is no output."""
    state_dir: Path
    """Private folder with the checkpoints."""
    failure: Path
    """File to which the first rank to fail writes why."""
    checkpoint_minutes: float
    """Minutes between two checkpoints."""
    keep: int
    """Number of checkpoints to keep."""
    tensorboard: bool
    """Whether to write files for TensorBoard."""
    dvclive: bool
    """Whether to write DVCLive's files."""
    min_positives: int
    """evaluate.min_positives: patients with and without a finding that validation metrics need."""

    def write(self, path: Path) -> None:
        """Write the specification as JSON."""
        write_json(path, self.model_dump(mode="json"))


def read_spec(path: Path) -> TrainSpec:
    """The specification that `TrainSpec.write` wrote."""
    return TrainSpec.model_validate(read_json(path))
