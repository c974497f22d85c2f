"""Refit the classifier of a trained network on stored features (second phase).

    python -m ral.training.refit smote --out models-smote
    python -m ral.training.refit crt --options '{"epochs": 5}' --out models-crt
    python -m ral.training.refit features

The features of all images are those that the step features has written; without them, they are computed once and kept
in state_dir/features (`features` does only that). The head is fitted on training images. --out gets a model in the
layout of the step train: weights, model.json, validation.json, and the logits of validation and test; and
second_phase.json, how it was made. Methods and options: docs/methods.md.
"""

import argparse
import json
import logging
import sys
import time
from pathlib import Path

from ral import artifacts

# Those of the registry, whose import takes seconds, for all data; and one that needs uncertain labels.
METHODS = ("crt", "undersample", "oversample", "two_phase", "smote", "virtual", "rcal", "storm")
PRESTO = "presto"

logger = logging.getLogger("ral.training.refit")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        prog="python -m ral.training.refit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = command.add_argument
    add("method", choices=("features", *METHODS, PRESTO), help="the method, or features")
    add("--options", default="{}", metavar="JSON", help="options of the method, a JSON object ({})")
    add("--seed", type=int, default=0, help="random seed of the method (0)")
    add("--models", type=Path, default=Path("models"), help="output of the step train (models)")
    add(
        "--prepared",
        type=Path,
        default=Path(artifacts.PREPARED),
        help="output of the step preprocess (data/prepared)",
    )
    add("--params", type=Path, default=Path("params.yaml"), help="parameters (params.yaml)")
    add(
        "--features",
        type=Path,
        default=Path(artifacts.FEATURES),
        help="output of the step features, used if it is of this model and these data (data/features)",
    )
    add("--precision", choices=("float32", "float16"), default="float32", help="of the features (float32)")
    add("--out", type=Path, help="folder to write; not with features")
    return command


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code. An error that the user can fix is one message.

    Args:
        arguments: those of the command line; None: those of this process.
    """
    from ral.errors import UserError, for_user
    from ral.log import configure

    command = parser()
    options = command.parse_args(arguments)
    if (options.out is None) != (options.method == "features"):
        command.error("--out is needed with a method, and not allowed with features")
    configure()
    try:
        run(options)
    except (UserError, OSError) as error:
        print(f"error: {for_user(error)}", file=sys.stderr)
        return 1
    return 0


def run(options: argparse.Namespace) -> None:
    """Make the features if there are none yet, fit the head and write the model.

    Raises:
        UserError: the model, the data or an option cannot be used.
    """
    import torch
    from threadpoolctl import threadpool_limits

    from ral.config.base import load
    from ral.config.environment import load_environment
    from ral.config.train import TrainStageParams
    from ral.data.dataset import open_dataset
    from ral.errors import UserError
    from ral.inference.bank import open_bank
    from ral.training.second_phase.model import SecondPhaseInfo, bank_of, write_model
    from ral.training.second_phase.registry import build_second_phase

    params = load(options.params, TrainStageParams)
    torch.set_num_threads(params.train.threads)
    phase = None
    if options.method != "features":
        try:
            phase = build_second_phase(options.method, json.loads(options.options))
        except ValueError as error:
            raise UserError(f"--options: {error}") from None
    dataset = open_dataset(options.prepared)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = load_environment().state_dir / "features"
    started = time.monotonic()
    features = open_bank(options.models, dataset, folder, options.precision, device, options.features)
    logger.info("Features of %d images: %.1f s", len(features), time.monotonic() - started)
    if phase is None:
        return
    started = time.monotonic()
    with threadpool_limits(params.train.threads):
        head = phase.fit(bank_of(dataset, features), options.seed)
    logger.info("%s: %.1f s", phase.name, time.monotonic() - started)
    info = SecondPhaseInfo(
        method=phase.name,
        options=phase.options.model_dump(mode="json"),
        seed=options.seed,
        precision=options.precision,
    )
    write_model(options.models, options.out, dataset, features, head, info, params.evaluate.min_positives)


if __name__ == "__main__":
    sys.exit(main())
