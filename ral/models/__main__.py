"""Check that timm has a model, before a long run.

python -m ral.models convnext_tiny
"""

import argparse
import sys

from ral.errors import UserError
from ral.models import import_timm, require_backbone


def main() -> None:
    """Exit with code 1 and the nearest names if there is no such model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="name, as in model.backbone")
    options = parser.parse_args()
    try:
        require_backbone(options.name, import_timm())
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
