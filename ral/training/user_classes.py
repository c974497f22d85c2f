"""Build the user's own loss and network and check them on a small batch, before a long run.

python -m ral.training.user_classes [params.yaml]
"""

import argparse
from pathlib import Path

from ral.config.base import load
from ral.config.params import Params
from ral.errors import exit_with_message
from ral.user_code import CUSTOM, is_class_path

# Findings of the check; the training checks again, with those of the data.
FINDINGS = 3


def check_classes(params: Params) -> None:
    """Check the classes that the parameters name, if any.

    Raises:
        UserError: see `ral.losses.custom.build_custom`, `ral.models.custom.build_custom` and `check_network`.
    """
    import torch

    from ral.losses import ClassCounts, build_loss
    from ral.models import build_model
    from ral.models.custom import check_network

    findings = len(params.data.findings) if params.data.findings else FINDINGS
    if params.loss.name == CUSTOM:
        counts = torch.arange(1, findings + 1, dtype=torch.float64)
        build_loss(CUSTOM, params.loss.custom.model_dump(), ClassCounts(counts, 100 - counts))
    if is_class_path(params.model.backbone):
        network = build_model(params.model, findings)
        check_network(network, params.model, findings, params.preprocess.size)


def main() -> None:
    """Exit with code 1 and a message if a class cannot be used."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "params", type=Path, nargs="?", default=Path("params.yaml"), help="parameters (params.yaml)"
    )
    options = parser.parse_args()
    with exit_with_message():
        check_classes(load(options.params, Params))


if __name__ == "__main__":
    main()
