"""Predict the findings of chest X-ray images with a released model. Research software, not a medical device.

    ral predict images/ --model champion -o results.csv
    ral predict scans.tar.gz --model v0.2.0 -o results.parquet --resume
    find /pacs/export -type f | ral predict - --model models -o results.jsonl

IMAGES are PNG, JPEG or DICOM files; folders with them (also as a PACS exports them); tar, tar.gz and zip archives; the
output folder of the step preprocess; or - for standard input: a tar, an image, or one path per line. Results have a row
per image, and per finding the calibrated probability, the decision at the released threshold, and the raw logit. An
image that cannot be used is a row with the reason.

Exit codes: 0 all images have a result; 1 an error stopped the run; 2 wrong usage; 3 some images have no result; 130
interrupted (Ctrl-C).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ral.errors import UserError, for_user

if TYPE_CHECKING:
    from ral.inference.scoring import Predictor

SOME_BAD, INTERRUPTED = 3, 130

# Share of images unlike the training images beyond which a warning is shown at the end; 2 % are expected, as 1 % of the
# training images are outside of each of two ranges.
UNLIKE_SHARE = 0.05


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        prog="ral predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("images", nargs="+", metavar="IMAGES", help="files, folders, archives, or -")
    command.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="MODEL",
        help="folder of a model or an export, `champion`, or a version such as v0.2.0; several: their mean",
    )
    command.add_argument(
        "-o", "--out", type=Path, required=True, help="file to write: .csv, .parquet or .jsonl"
    )
    command.add_argument(
        "--resume", action="store_true", help="continue an interrupted run with the same --out"
    )
    command.add_argument("--tta", choices=("flip",), help="average with the mirror image; thresholds stay")
    command.add_argument("--report", type=Path, metavar="PAGE.html", help="also write a page to look through")
    command.add_argument("--device", help="cpu, cuda or cuda:1 (a GPU if there is one)")
    command.add_argument("--workers", type=int, help="threads that decode, and score on a CPU (one per core)")
    return command


def main(arguments: Sequence[str]) -> int:
    """Run `ral predict` and return its exit code.

    Args:
        arguments: those after `ral predict`.
    """
    options = parser().parse_args(arguments)
    from ral.log import configure

    configure()
    try:
        return _run(options)
    except KeyboardInterrupt:
        print("Interrupted. To continue, rerun the same command with --resume.", file=sys.stderr)
        return INTERRUPTED
    except (UserError, OSError) as error:
        print(f"error: {for_user(error)}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    from ral.inference.images import count_inputs, read_inputs
    from ral.inference.results import ResultFile
    from ral.progress import Progress

    if options.workers is not None and options.workers < 1:
        raise UserError("--workers must be at least 1.")
    missing = [text for text in options.images if text != "-" and not Path(text).exists()]
    if missing:
        raise UserError(f"{missing[0]} does not exist. Name an image, a folder or an archive.")
    for text in options.images:
        if Path(text).name.upper() == "DICOMDIR":
            raise UserError(
                f"{text} is an index without images. Name its folder: ral predict {Path(text).parent}"
            )
    if options.report and "-" in options.images:
        raise UserError("--report reads the images a second time, so it needs files, not standard input.")
    predictor = open_predictor(options.model, options.device, options.tta == "flip", options.workers)
    name, notice = predictor.name, predictor.notice
    unlike: dict[str, int] = {}
    with ResultFile(options.out, predictor.labels(), options.resume) as results:
        if not results.complete:
            earlier = results.images
            with Progress("predicting", count_inputs(options.images), "images") as progress:
                progress.add(earlier)
                for predicted in predictor.stream(results.remaining(read_inputs(options.images))):
                    results.write(predicted)
                    progress.add(len(predicted.names))
                    for text in filter(None, predicted.warnings):
                        for warning in text.split("; "):
                            unlike[warning] = unlike.get(warning, 0) + 1
            if not results.images:
                raise UserError(
                    f"No image in {', '.join(options.images)}. Images are PNG, JPEG or DICOM files."
                )
            results.finish()
            _warn(unlike, results.images - earlier)
    print(f"{notice[0].upper()}{notice[1:]}.")
    earlier_text = " (completed by an earlier run)" if results.complete else ""
    print(f"{results.images:,} images, model {name}: {options.out}{earlier_text}")
    if options.report:
        from ral.inference.page import write_page

        shown = write_page(options.report, predictor, read_inputs(options.images))
        print(f"{shown:,} images to look through: {options.report}")
    if results.bad:
        print(f"{results.bad:,} of them have no result: see the column error.", file=sys.stderr)
    return SOME_BAD if results.bad else 0


def open_predictor(
    models: Sequence[str | Path], device: str | None = None, flip: bool = False, workers: int | None = None
) -> "Predictor":
    """Open models and put them on a device.

    Args:
        models: as `ral.inference.released.find_model` takes them.
        device: name of torch's device; None for a GPU if there is one, else the CPU.
        flip: whether to average with the mirror image.
        workers: see `Predictor`.

    Raises:
        UserError: there is no such model or device, or a model cannot be used.
    """
    import torch

    from ral.inference.released import find_model, open_model
    from ral.inference.scoring import Predictor

    opened = [open_model(find_model(model)) for model in models]
    exported = [model.name for model in opened if model.cpu_only]
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() and not exported else "cpu"))
    except RuntimeError as error:
        raise UserError(f"--device {device}: {error}") from None
    if chosen.type not in ("cpu", "cuda") or (chosen.type == "cuda" and not torch.cuda.is_available()):
        raise UserError(
            f"--device {device} cannot be used here. Choose cpu, or cuda on a machine with a GPU."
        )
    if exported and chosen.type != "cpu":
        raise UserError(
            f"--device {device}: {exported[0]} is an export to ONNX or torch.export, which run on the CPU here. Choose "
            "cpu, or the model that it was made from."
        )
    return Predictor(opened, chosen, flip, workers)


def _warn(unlike: dict[str, int], scored: int) -> None:
    """Warn if more images differ from the training images than chance explains."""
    import logging

    for warning, count in sorted(unlike.items()):
        if count > UNLIKE_SHARE * scored:
            logging.getLogger("ral.inference").warning(
                "%s of %s images: %s. The model may not work on them; see the column warning.",
                f"{count:,}", f"{scored:,}", warning,
            )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
