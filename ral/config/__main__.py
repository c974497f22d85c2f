"""Check the whole of params.yaml, before a long run finds a typing error at its end.

python -m ral.config [params.yaml]
"""

import sys
from pathlib import Path

from ral.config.base import load
from ral.config.params import Params
from ral.errors import UserError

if __name__ == "__main__":
    try:
        load(Path(sys.argv[1] if len(sys.argv) > 1 else "params.yaml"), Params)
    except UserError as error:
        sys.exit(f"error: {error}")
