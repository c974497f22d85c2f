"""Train the network on the prepared films, with DeepSpeed: one process per GPU, or one on the CPU.

    python -m tasks.train

Writes model.safetensors and model.json, history.csv, validation.json (the figures to choose by), and raw logits of validation and test. What is started,
once per process, is `python -m ral.training runs/<id>/train.json`.
"""

from pathlib import Path

from ral.config.base import load
from ral.config.train import TrainParams
from tasks import step


def run(params: TrainParams, prepared: Path, out: Path) -> None:
    """Train on the data in `prepared` and write the model and its logits into `out`.

    Raises:
        UserError: a parameter does not fit the data or the machine, or a training process failed.
    """
    import torch

    from ral import runs
    from ral.files import new_folder, read_json, write_json
    from ral.launch import launch_local

    read_json(prepared / "dataset.json")  # says here, not from a child, that preprocess has not run
    with new_folder(out) as draft:
        spec = runs.folder() / "train.json"
        write_json(
            spec,
            {"params": params.model_dump(), "prepared": str(prepared.resolve()), "out": str(draft.resolve())},
        )
        launch_local(spec, draft / "error.txt", max(1, torch.cuda.device_count()))


if __name__ == "__main__":
    options = step.parse(
        __doc__,
        {
            "prepared": ("data/prepared", "what the step preprocess wrote"),
            "out": ("models", "folder to write"),
        },
    )
    step.main("train", lambda: run(load(options.params, TrainParams), options.prepared, options.out))
