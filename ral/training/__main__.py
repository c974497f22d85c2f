"""One rank of a training run. The step train starts as many as the launcher is configured for
(docs/launching.md).

    RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 \\
        python -m ral.training spec.json

spec.json is a `ral.training.spec.TrainSpec`. The process of rank 0 writes model.safetensors,
weights/{last,ema}.safetensors, model.json, history.csv, validation.json and logits/{val,test}.parquet into
`out`. The first process to fail writes {"kind", "retry", "message"} to `failure` and exits with 1. On SIGTERM
or SIGHUP a checkpoint is written, and the exit code is 143.
"""

import argparse
from pathlib import Path

if __name__ == "__main__":  # before the imports that take seconds: --help needs none of them
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("spec", type=Path, help="specification of the training")
    parser.parse_args()

import contextlib
import logging
import sys
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, NoReturn

from ral.data.dataset import Dataset, open_dataset
from ral.errors import DISK_ERRORS, UserError, explain_os_error
from ral.launch.base import read_failure, write_failure
from ral.log import configure
from ral.processes import LOST_PEER, die_with_parent, exit_now
from ral.training.spec import TrainSpec, read_spec

logger = logging.getLogger("ral.training")

if TYPE_CHECKING:
    from ral.training.trainer import Trainer


def train(spec: TrainSpec, dataset: Dataset) -> None:
    """Train, and write the outputs on rank 0."""
    import torch

    from ral.memory import keep_freed_memory
    from ral.training.backend import set_cuda_math
    from ral.training.build import build_trainer
    from ral.training.checkpoint import Checkpoints, training_fingerprint
    from ral.training.device import log_device
    from ral.training.distributed import init_process
    from ral.training.outputs import SPLITS, TrainResult, write_outputs
    from ral.training.state import PreemptionFlag

    params = spec.params
    torch.set_num_threads(params.train.threads)
    set_cuda_math(params.train)
    stop = PreemptionFlag()
    context = init_process()
    if context.device.type == "cpu":
        keep_freed_memory()
    if context.rank == 0:
        log_device(context.device, context.world_size, params.train)
    name = training_fingerprint(params.model_dump() | {"min_positives": spec.min_positives}, spec.prepared)
    checkpoints = Checkpoints(spec.state_dir / "training" / name, spec.keep, spec.checkpoint_minutes)
    with checkpoints.lock() if context.rank == 0 else contextlib.nullcontext():
        torch.distributed.barrier()
        trainer = build_trainer(spec, dataset, context, checkpoints, stop)
        with _save_on_interrupt(trainer, spec.failure):
            state, scorer = trainer.train(), trainer.validator.scorer
            weights = state.best_weights()
            logits = {split: scorer.score(weights, dataset.rows(split)) for split in SPLITS}
            if context.rank == 0:
                pretrained, measured = scorer.network.weights_sha256, trainer.validator.measured
                write_outputs(spec.out, TrainResult(params, dataset, state, pretrained, measured, logits))
                checkpoints.remove()
        torch.distributed.barrier()  # a rank that exits early can abort the others
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _save_on_interrupt(trainer: "Trainer", failure: Path) -> Iterator[None]:
    """On an interrupt, save unsaved progress and write how to resume to the failure file."""
    try:
        yield
    except SystemExit:
        if trainer.context.rank == 0:
            trainer.save_unsaved()
            step = trainer.checkpoints.newest_step()
            resume_hint = (
                "No checkpoint was saved yet: rerun the same command to start over."
                if step is None
                else f"A checkpoint was saved after {step:,} steps: rerun the same command to resume."
            )
            # The launcher may already have reported the interrupt; this message says more.
            reported = read_failure(failure)
            replace = reported is not None and reported.kind == "interrupted"
            message = f"Training was interrupted. {resume_hint}"
            write_failure(failure, message, "interrupted", True, replace=replace)
        raise


def run() -> NoReturn:
    """Entry point of a rank: run `main` and exit with its code."""
    try:
        code = main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - printed as the interpreter would
        traceback.print_exc()
        code = 1
    exit_now(code)


def main() -> int:
    """Read the specification and train; on failure, write the cause to the failure file.

    Returns:
        The exit code.
    """
    die_with_parent()
    configure()
    spec = read_spec(Path(sys.argv[1]))
    try:
        train(spec, open_dataset(spec.prepared))
    except UserError as error:
        write_failure(spec.failure, str(error), error.kind, error.retry)
        return 1
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        write_failure(spec.failure, explain_os_error(error), "disk", False)
        return 1
    except RuntimeError as error:
        if not _peer_lost(error):
            raise
        logger.error("Lost connection to a peer rank: %s", str(error).splitlines()[0])
        return LOST_PEER
    return 0


def _peer_lost(error: RuntimeError) -> bool:
    """Whether gloo or NCCL lost the connection to another rank, whose failure is then the one to report."""
    messages = (
        "Connection closed by peer",
        "Connection reset by peer",
        "Broken pipe",
        "NCCL",
        "Socket closed",
        "Timed out waiting",  # gloo, where the network is down: no connection is closed
        "recvValue failed",
    )
    text = str(error)
    # NCCL's errors about its arguments (two ranks on one GPU) are no rank's loss: they must be reported.
    return any(message in text for message in messages) and "ncclInvalid" not in text


if __name__ == "__main__":
    run()
