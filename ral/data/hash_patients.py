"""Writes a file of keyed hashes of patient ids, for `data.exclude_patients` with `data.exclude_salt`.

python -m ral.data.hash_patients IDS --salt SALT --out HASHES
"""

import argparse
from pathlib import Path

from ral.errors import exit_with_message


def main(options: argparse.Namespace) -> None:
    """Write the hashes.

    Raises:
        UserError: see `ral.data.exclusions.write_hashes`.
    """
    from ral.data.exclusions import write_hashes

    count = write_hashes(options.ids, options.salt, options.out)
    print(f"{count:,} hashes: {options.out}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ids", type=Path, metavar="IDS", help="file with one patient id per line")
    parser.add_argument("--salt", type=Path, required=True, help="salt file (data.exclude_salt)")
    parser.add_argument("--out", type=Path, required=True, help="file to write (data.exclude_patients)")
    with exit_with_message():
        main(parser.parse_args())
