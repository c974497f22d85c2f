"""Export a trained model to a folder that other tools open. Research software, not a medical device.

    ral export timm --model models -o chest-timm
    ral export onnx --model champion -o chest-onnx
    ral export torch --model models -o chest-torch

Calibration, thresholds, labels, preprocessing and model card go along. See docs/export.md.
"""

import argparse
import sys
from pathlib import Path

from ral.errors import UserError, for_user
from ral.inference.export_folder import KINDS


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        prog="ral export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument(
        "kind", choices=KINDS, help="timm (linear heads only), onnx, or torch (torch.export)"
    )
    command.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="folder of a release or of a project after a complete run, `champion`, or a version such as v0.2.0",
    )
    command.add_argument(
        "-o", "--out", type=Path, required=True, metavar="FOLDER", help="new or empty folder to write"
    )
    return command


def main(arguments: list[str]) -> int:
    """Run `ral export`.

    Returns:
        Exit code: 0, or 1 after an error that the user can fix.
    """
    options = parser().parse_args(arguments)
    try:
        from ral.export.write import export

        difference = export(options.kind, options.model, options.out)
    except (UserError, OSError) as error:
        print(f"error: {for_user(error)}", file=sys.stderr)
        return 1
    print(f"Wrote {options.out}. Largest difference of a logit on phantom images: {difference:.1e}.")
    return 0
