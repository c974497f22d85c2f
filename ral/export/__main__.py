"""`python -m ral.export` is `ral export`."""

import sys

from ral.export import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
