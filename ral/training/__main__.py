"""One process of a training run. The step train has as many started as the launcher says (docs/launching.md).

    RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 \\
        python -m ral.training spec.json

spec.json: {"params": {"model", "loss", "train"}, "prepared": folder, "out": folder, "run": folder, "state_dir": folder,
"failure": file, "checkpoint_minutes": number, "keep": number, "tensorboard": true or false}. The process of rank 0 writes model.safetensors,
weights/{last,ema}.safetensors, model.json, history.csv, validation.json and logits/{val,test}.parquet into `out`.
The first process to fail leaves {"kind", "retry", "message"} in `failure` and exits with 1. SIGTERM or SIGHUP: a
checkpoint is written, and the exit code is 143.
"""

import contextlib
import csv
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ral.config.train import TrainParams
from ral.data.dataset import Dataset, open_dataset
from ral.errors import DISK_ERRORS, UserError, explain_os_error
from ral.files import follow_umask, read_json, write_json
from ral.launch.base import read_failure, write_failure
from ral.processes import LOST_PEER, die_with_parent, leave
from ral.training.state import HISTORY

if TYPE_CHECKING:
    from ral.training.trainer import Trainer


def train(spec: dict[str, Any], params: TrainParams, dataset: Dataset) -> None:
    """Train, and on rank 0 write the outputs."""
    import torch

    from ral.training.checkpoint import Checkpoints, training_fingerprint
    from ral.training.engine import init_process
    from ral.training.loop import DistributedContext
    from ral.training.metric_logger import MetricLogger
    from ral.training.state import PreemptionFlag
    from ral.training.trainer import Trainer

    torch.set_num_threads(params.train.threads)
    stop = PreemptionFlag()
    place = DistributedContext(*init_process())
    name = training_fingerprint(params.model_dump(), Path(spec["prepared"]))
    checkpoints = Checkpoints(Path(spec["state_dir"]) / "training" / name, spec["keep"])
    with checkpoints.lock() if place.rank == 0 else contextlib.nullcontext():
        torch.distributed.barrier()
        log = MetricLogger(Path(spec["run"]), spec["tensorboard"]) if place.rank == 0 else None
        training = Trainer(params, dataset, place, checkpoints, spec["checkpoint_minutes"], log, stop)
        with _saved_if_interrupted(training, Path(spec["failure"])):
            fit = training.fit()
            chosen = fit.state.best[fit.chosen].weights
            logits = {split: fit.scorer.score(chosen, dataset.rows(split)) for split in ("val", "test")}
            if place.rank == 0:
                write_outputs(Path(spec["out"]), params, dataset, fit, logits)
                checkpoints.remove()
        torch.distributed.barrier()  # a process that leaves early can abort the others' exit
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _saved_if_interrupted(training: "Trainer", failure: Path) -> Iterator[None]:
    """Asked to end, save what is not saved yet, and leave word of where the same command resumes."""
    try:
        yield
    except SystemExit:
        if training.place.rank == 0:
            training.save_unsaved()
            step = training.checkpoints.newest_step()
            where = (
                "No checkpoint was saved yet: rerun the same command to start again."
                if step is None
                else f"A checkpoint was saved after {step:,} steps: rerun the same command to resume."
            )
            # Who watches the processes may have said already that they were asked; this says more.
            known = read_failure(failure)
            better = known is not None and known.kind == "interrupted"
            write_failure(failure, f"Training was asked to end. {where}", "interrupted", True, replace=better)
        raise


def write_outputs(
    out: Path, params: TrainParams, dataset: Dataset, fit: Any, logits: dict[str, np.ndarray]
) -> None:
    """Write everything that the step train gives.

    Raises:
        UserError: a logit is not finite.
    """
    for split, values in logits.items():
        if not np.isfinite(values).all():
            raise UserError(
                f"The chosen weights give non-finite logits on {split}. Lower train.learning_rate.",
                kind="not_finite",
            )
        write_logits(dataset, dataset.rows(split), values, out / "logits" / f"{split}.parquet")
    data = "phantom" if dataset.metadata["phantom"] else "images"
    (out / "weights").mkdir(exist_ok=True)
    kinds = {kind: best for kind, best in fit.state.best.items() if best.weights}
    for kind, best in kinds.items():
        write_weights(out / "weights" / f"{kind}.safetensors", best.weights, data)
    write_weights(out / "model.safetensors", kinds[fit.chosen].weights, data)
    best_row = fit.state.history[kinds[fit.chosen].epoch - 1]
    write_json(
        out / "model.json",
        {
            "model": params.model.model_dump(),
            "pretrained_sha256": fit.network.weights_sha256,
            "findings": list(dataset.findings),
            "size": dataset.metadata["size"],
            "pixel_mean": dataset.metadata["pixel_mean"],
            "pixel_deviation": dataset.metadata["pixel_deviation"],
            "loss": params.loss.name,
            "weights": fit.chosen,
            "best_epoch": best_row["epoch"],
            "phantom": dataset.metadata["phantom"],
            "outputs": "raw logits; their sigmoid is not a probability",
        },
    )
    prefix = "ema_" if fit.chosen == "ema" else ""
    figures = {name: best_row[prefix + name] for name in ("val_macro_ap", "val_macro_auroc")}
    write_json(
        out / "validation.json",
        {"data": data, "weights": fit.chosen, "val": {"epoch": best_row["epoch"], **figures}},
    )
    with (out / "history.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, [*HISTORY, "data"], lineterminator="\n")
        table.writeheader()
        table.writerows({**row, "data": data} for row in fit.state.history)


def write_weights(path: Path, weights: dict[str, Any], data: str) -> None:
    """Write weights as safetensors, readable by all."""
    from ral.training.checkpoint import save_tensors

    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    # One entry only: safetensors writes several in random order, and the bytes would change from run to run.
    save_tensors(tensors, path, {"trained_on": f"{data}; research, not a medical device"})
    follow_umask(path)  # safetensors makes it private


def write_logits(dataset: Dataset, rows: np.ndarray, values: np.ndarray, path: Path) -> None:
    """Write image_id and one float32 column of raw logits per finding."""
    import pandas as pd

    table = pd.DataFrame(values, columns=list(dataset.findings))
    table.insert(0, "image_id", dataset.studies["image_id"].to_numpy()[rows])
    path.parent.mkdir(exist_ok=True)
    table.to_parquet(path, index=False)


def run() -> NoReturn:
    """What a process of a training does, from its start to its end."""
    try:
        code = main()
    except SystemExit as asked:
        code = asked.code if isinstance(asked.code, int) else 1
    except BaseException:  # noqa: BLE001 - shown as the interpreter would
        traceback.print_exc()
        code = 1
    leave(code)


def main() -> int:
    """Read the specification and train; the first to fail leaves word of what went wrong.

    Returns:
        The exit code.
    """
    die_with_parent()
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
        if not _peer_is_gone(error):
            raise
        print(f"a process of this training has gone: {str(error).splitlines()[0]}", file=sys.stderr)
        return LOST_PEER
    return 0


def _peer_is_gone(error: RuntimeError) -> bool:
    """Whether gloo or nccl complains of another process's end, which is then the one to report."""
    signs = (
        "Connection closed by peer",
        "Connection reset by peer",
        "Broken pipe",
        "NCCL",
        "Socket closed",
        "recvValue failed",
    )
    return any(sign in str(error) for sign in signs)


if __name__ == "__main__":
    run()
