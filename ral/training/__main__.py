"""One rank of a training run. The step train starts as many as the launcher is configured for
(docs/launching.md).

    RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 \\
        python -m ral.training spec.json

spec.json: {"params": {"model", "loss", "train"}, "prepared": folder, "out": folder, "run": folder,
"state_dir": folder, "failure": file, "checkpoint_minutes": number, "keep": number, "tensorboard": true or
false, "min_positives": number}. The process of rank 0 writes model.safetensors,
weights/{last,ema}.safetensors, model.json, history.csv, validation.json and logits/{val,test}.parquet into
`out`. The first process to fail writes
{"kind", "retry", "message"} to `failure` and exits with 1. On SIGTERM or SIGHUP a checkpoint is written, and
the exit code is 143.
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
import csv
import logging
import sys
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ral.config.train import TrainParams
from ral.data.dataset import Dataset, open_dataset
from ral.errors import DISK_ERRORS, UserError, explain_os_error
from ral.files import follow_umask, read_json, write_json
from ral.launch.base import read_failure, write_failure
from ral.log import configure
from ral.processes import LOST_PEER, die_with_parent, exit_now
from ral.training.state import HISTORY
from ral.user_code import files_in_use

logger = logging.getLogger("ral.training")

if TYPE_CHECKING:
    from ral.training.trainer import Trainer


def train(spec: dict[str, Any], params: TrainParams, dataset: Dataset) -> None:
    """Train, and write the outputs on rank 0."""
    import torch

    from ral.training.backend import set_cuda_math
    from ral.training.checkpoint import Checkpoints, training_fingerprint
    from ral.training.device import log_device
    from ral.training.engine import init_process
    from ral.training.loop import DistributedContext
    from ral.training.metric_logger import MetricLogger
    from ral.training.state import PreemptionFlag
    from ral.training.trainer import Trainer

    torch.set_num_threads(params.train.threads)
    set_cuda_math(params.train)
    stop = PreemptionFlag()
    context = DistributedContext(*init_process())
    if context.rank == 0:
        log_device(context.device, context.world_size, params.train)
    content = params.model_dump() | {"min_positives": spec["min_positives"]}
    name = training_fingerprint(content, Path(spec["prepared"]))
    checkpoints = Checkpoints(Path(spec["state_dir"]) / "training" / name, spec["keep"])
    with checkpoints.lock() if context.rank == 0 else contextlib.nullcontext():
        torch.distributed.barrier()
        metric_logger = MetricLogger(Path(spec["run"]), spec["tensorboard"]) if context.rank == 0 else None
        trainer = Trainer(
            params, dataset, context, checkpoints, spec["checkpoint_minutes"], metric_logger, stop,
            spec["min_positives"],
        )  # fmt: skip
        with _save_on_interrupt(trainer, Path(spec["failure"])):
            result = trainer.fit()
            weights = result.state.best[result.best_kind].weights
            logits = {split: result.scorer.score(weights, dataset.rows(split)) for split in ("val", "test")}
            if context.rank == 0:
                write_outputs(
                    Path(spec["out"]), params, dataset, result, logits, int(trainer.val_findings.sum())
                )
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


def write_outputs(
    out: Path,
    params: TrainParams,
    dataset: Dataset,
    result: Any,
    logits: dict[str, np.ndarray],
    findings: int,
) -> None:
    """Write all outputs of the step train; `findings` is the number that validation metrics are averaged over.

    Raises:
        UserError: logits are not finite.
    """
    for split, values in logits.items():
        if not np.isfinite(values).all():
            raise UserError(
                f"The selected weights give non-finite logits on {split}. Lower train.learning_rate.",
                kind="not_finite",
            )
        write_logits(dataset, dataset.rows(split), values, out / "logits" / f"{split}.parquet")
    data = "phantom" if dataset.metadata["phantom"] else "images"
    (out / "weights").mkdir(exist_ok=True)
    best_checkpoints = {kind: best for kind, best in result.state.best.items() if best.weights}
    for kind, best in best_checkpoints.items():
        write_weights(out / "weights" / f"{kind}.safetensors", best.weights, data)
    write_weights(out / "model.safetensors", best_checkpoints[result.best_kind].weights, data)
    best_row = result.state.history[best_checkpoints[result.best_kind].epoch - 1]
    write_json(
        out / "model.json",
        {
            "model": params.model.model_dump(),
            "pretrained_sha256": result.network.weights_sha256,
            "findings": list(dataset.findings),
            "size": dataset.metadata["size"],
            "pixel_mean": dataset.metadata["pixel_mean"],
            "pixel_deviation": dataset.metadata["pixel_deviation"],
            "network_code": files_in_use(params.model_dump())["network"],
            "loss": params.loss.title,
            # How images are prepared for this model, and what those of its training look like.
            "preparation": dataset.metadata.get("preparation"),
            "profile": dataset.metadata.get("profile"),
            "weights": result.best_kind,
            "best_epoch": best_row["epoch"],
            "validation_findings": findings,
            "phantom": dataset.metadata["phantom"],
            "outputs": "raw logits; their sigmoid is not a probability",
        },
    )
    prefix = "ema_" if result.best_kind == "ema" else ""
    # What `dvc exp show` and `dvc metrics show` print: few, and short names.
    metrics = {name: best_row[f"{prefix}val_macro_{name}"] for name in ("ap", "auroc")}
    write_json(out / "validation.json", {"val": {"data": data, **metrics}})
    with (out / "history.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, [*HISTORY, "data"], lineterminator="\n")
        table.writeheader()
        table.writerows({**row, "data": data} for row in result.state.history)


def write_weights(path: Path, weights: dict[str, Any], data: str) -> None:
    """Write weights as a safetensors file with the usual permissions."""
    from ral.training.checkpoint import save_tensors

    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    # Only one metadata entry: safetensors writes several in random order, which would change the bytes
    # between runs.
    save_tensors(tensors, path, {"trained_on": f"{data}; research, not a medical device"})
    follow_umask(path)  # safetensors creates it with mode 0600


def write_logits(dataset: Dataset, rows: np.ndarray, values: np.ndarray, path: Path) -> None:
    """Write image_id and one float32 column of raw logits per finding."""
    import pandas as pd

    table = pd.DataFrame(values, columns=list(dataset.findings))
    table.insert(0, "image_id", dataset.studies["image_id"].to_numpy()[rows])
    path.parent.mkdir(exist_ok=True)
    table.to_parquet(path, index=False)


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
    spec = read_json(Path(sys.argv[1]))
    try:
        params = TrainParams.model_validate(spec["params"])
        train(spec, params, open_dataset(Path(spec["prepared"])))
    except UserError as error:
        write_failure(Path(spec["failure"]), str(error), error.kind, error.retry)
        return 1
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        write_failure(Path(spec["failure"]), explain_os_error(error), "disk", False)
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
        "recvValue failed",
    )
    text = str(error)
    # NCCL's errors about its arguments (two ranks on one GPU) are no rank's loss: they must be reported.
    return any(message in text for message in messages) and "ncclInvalid" not in text


if __name__ == "__main__":
    run()
