"""One process of a training run. The step train starts as many as there are GPUs, or one without any.

    RANK=0 WORLD_SIZE=1 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=29500 \\
        python -m ral.training spec.json

spec.json: {"params": {"model", "loss", "train"}, "prepared": folder, "out": folder}. The process of rank 0 writes
model.safetensors, model.json, history.csv, validation.json and logits/{val,test}.parquet into `out`; what the user can mend goes to
error.txt there, and the exit code is 1.
"""

import contextlib
import csv
import sys
from pathlib import Path

import numpy as np

from ral.config.train import TrainParams
from ral.data.dataset import Dataset, open_dataset
from ral.errors import UserError
from ral.files import read_json, write_json
from ral.processes import die_with_parent


def train(params: TrainParams, dataset: Dataset, out: Path) -> None:
    """Train, and on rank 0 write the outputs."""
    import torch
    from safetensors.torch import save_file

    from ral.models import build_model
    from ral.training.engine import init_process, start_engine
    from ral.training.loop import Trainer

    torch.set_num_threads(params.train.threads)
    rank, world, device = init_process()
    torch.manual_seed(params.train.seed)
    model = build_model(params.model, len(dataset.findings))
    if world > 1 and device.type == "cuda":
        model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    trainer = Trainer(start_engine(model, params.train, world), dataset, params, rank, world, device)
    history, best, epoch = trainer.fit()
    trainer.engine.module.load_state_dict(best)
    logits = {split: trainer.score(dataset.rows(split)) for split in ("val", "test")}
    if rank == 0:
        data = "phantom" if dataset.facts["phantom"] else "films"
        tensors = {name: tensor.contiguous() for name, tensor in best.items()}
        # One entry only: safetensors writes several in random order, and the bytes would change from run to run.
        save_file(
            tensors, out / "model.safetensors", {"trained_on": f"{data}; research, not a medical device"}
        )
        (out / "model.safetensors").chmod(0o644)  # safetensors makes it private
        write_json(
            out / "model.json",
            {
                "backbone": params.model.backbone,
                "options": params.model.options,
                "findings": list(dataset.findings),
                "size": dataset.facts["size"],
                "pixel_mean": dataset.facts["pixel_mean"],
                "pixel_deviation": dataset.facts["pixel_deviation"],
                "loss": params.loss.name,
                "best_epoch": epoch,
                "phantom": dataset.facts["phantom"],
                "outputs": "raw logits; their sigmoid is not a probability",
            },
        )
        best_row = history[epoch - 1]
        write_json(
            out / "validation.json",
            {
                "data": data,
                "val": {name: best_row[name] for name in ("epoch", "val_macro_ap", "val_macro_auroc")},
            },
        )
        with (out / "history.csv").open("w", newline="", encoding="utf-8") as stream:
            table = csv.DictWriter(stream, [*history[0], "data"], lineterminator="\n")
            table.writeheader()
            table.writerows({**row, "data": data} for row in history)
        for split, values in logits.items():
            if not np.isfinite(values).all():
                raise UserError(
                    f"The best model gives non-finite logits on {split}. Lower train.learning_rate."
                )
            write_logits(dataset, dataset.rows(split), values, out / "logits" / f"{split}.parquet")
    torch.distributed.barrier()  # a process that leaves early can abort the others' exit
    torch.distributed.destroy_process_group()


def write_logits(dataset: Dataset, rows: np.ndarray, values: np.ndarray, path: Path) -> None:
    """Write image_id and one float32 column of raw logits per finding."""
    import pandas as pd

    table = pd.DataFrame(values, columns=list(dataset.findings))
    table.insert(0, "image_id", dataset.studies["image_id"].to_numpy()[rows])
    path.parent.mkdir(exist_ok=True)
    table.to_parquet(path, index=False)


def main() -> None:
    """Read the specification and train; the first to fail leaves word of what went wrong."""
    die_with_parent()
    spec = read_json(Path(sys.argv[1]))
    out = Path(spec["out"])
    try:
        train(TrainParams.model_validate(spec["params"]), open_dataset(Path(spec["prepared"])), out)
    except UserError as error:
        with contextlib.suppress(FileExistsError), (out / "error.txt").open("x", encoding="utf-8") as stream:
            stream.write(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
