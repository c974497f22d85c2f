"""Train the network on the prepared images with DeepSpeed: one process per GPU, or one on the CPU.

    python -m tasks.train
    python -m tasks.train --dry-run      # prints the exact script, commands or manifest, and starts nothing

Writes model.safetensors and model.json, weights/ (as trained, and EMA), history.csv, validation.json (the
metrics for model selection), and raw logits of validation and test. Each rank runs
`python -m ral.training runs/<id>/train.json`; ral.toml configures where and how (docs/launching.md). After an
interruption, the same command resumes from the newest checkpoint in state_dir.
"""

import os
from pathlib import Path

from ral import artifacts
from ral.config.base import load
from ral.config.environment import Environment, load_environment
from ral.config.train import TrainStageParams
from tasks import step


def run(params: TrainStageParams, environment: Environment, prepared: Path, out: Path) -> None:
    """Train on the data in `prepared` and write the model and its logits to `out`.

    Raises:
        UserError: a parameter does not fit the data or the machine, or a rank failed.
    """
    from ral import runs
    from ral.files import atomic_directory, read_json
    from ral.launch import launch
    from ral.launch.base import read_failure
    from ral.launch.local import choose_processes
    from ral.training.spec import TrainSpec

    read_json(prepared / artifacts.DATASET.name)  # fail early if preprocess has not run
    folder = runs.folder().resolve()
    with atomic_directory(out) as draft:
        spec = folder / "train.json"
        TrainSpec(
            params=params.training(),
            prepared=prepared.resolve(),
            out=draft.resolve(),
            run=folder,
            state_dir=environment.state_dir,
            failure=folder / "rank_failure.json",
            checkpoint_minutes=environment.training.checkpoint_minutes,
            keep=environment.training.keep,
            tensorboard=environment.training.tensorboard,
            dvclive=environment.training.dvclive,
            min_positives=params.evaluate.min_positives,
        ).write(spec)
        try:
            launch(spec, choose_processes(environment.training, params.train), folder)
        except (KeyboardInterrupt, SystemExit) as end:
            if (failure := read_failure(folder / "rank_failure.json")) is not None:
                end.add_note(str(failure))  # whether a checkpoint was saved
            raise


def show(params: TrainStageParams, environment: Environment) -> None:
    """Print what `run` would start; nothing is started or written.

    Raises:
        UserError: a setting that the launcher needs is missing.
    """
    from ral import runs
    from ral.launch import dry_run
    from ral.launch.local import choose_processes

    folder = Path("runs") / os.environ.get(runs.RUN_ID, "DRY-RUN")
    training = choose_processes(environment.training, params.train)
    print(dry_run(folder / "train.json", training, folder), end="")


if __name__ == "__main__":
    options = step.parse(
        __doc__,
        {
            "prepared": (artifacts.PREPARED, "what the step preprocess wrote"),
            "out": (artifacts.MODELS, "folder to write"),
        },
        {"dry-run": "show what would be launched, and start nothing"},
    )

    def start() -> None:
        params, environment = load(options.params, TrainStageParams), load_environment()
        if options.dry_run:
            show(params, environment)
        else:
            run(params, environment, options.prepared, options.out)

    step.main("train", start, record=not options.dry_run)
