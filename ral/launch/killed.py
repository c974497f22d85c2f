"""Report that the launcher of training was killed, so that all ranks end; the launcher's watcher runs it.

python -m ral.launch.killed FAILURE.json
"""

import argparse
from pathlib import Path

from ral.launch.base import write_failure

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("failure", type=Path, help="failure file of the job")
    write_failure(parser.parse_args().failure, "The launcher of training was killed.", "interrupted", True)
