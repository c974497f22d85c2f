"""What later runs are held to, kept in the versioned folder baseline/: an accepted profile, an accepted split.

    python -m ral.data.baseline profile    # baseline/profile.json from data/validated/verdict.json
    python -m ral.data.baseline split      # baseline/split.parquet from data/prepared/split.parquet

Accepting is a person's decision and never happens by itself; commit the file afterwards. A missing file means that
there is nothing to compare with.
"""

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from ral.errors import UserError
from ral.files import new_file, read_json, write_json

PROFILE, SPLIT = "profile.json", "split.parquet"


def read_profile(folder: Path) -> dict[str, Any] | None:
    """The accepted profile, or None.

    Raises:
        UserError: the file is no profile.
    """
    path = folder / PROFILE
    if not path.is_file():
        return None
    try:
        profile = read_json(path)
        if {"rows", "columns", "labels"} <= profile.keys():
            return dict(profile)
    except (ValueError, AttributeError):
        pass
    raise UserError(f"{path} is no profile. Delete it, or accept one: `python -m ral.data.baseline profile`.")


def read_split(folder: Path) -> pd.Series | None:
    """Split by patient id of the accepted split, or None.

    Raises:
        UserError: the file is no split, or has a patient twice.
    """
    path = folder / SPLIT
    if not path.is_file():
        return None
    try:
        table = pd.read_parquet(path, columns=["patient_id", "split"])
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"{path} is no split ({error}). Delete it, or accept one again.") from None
    if table["patient_id"].duplicated().any() or not table["split"].isin(("train", "val", "test")).all():
        raise UserError(f"{path} has a patient twice, or a split that is none. Accept one again.")
    return table.set_index("patient_id")["split"]


def accept_profile(validated: Path, folder: Path) -> Path:
    """Keep the profile of what the step validate let pass.

    Raises:
        UserError: validate has not run, or did not pass.
    """
    path = validated / "verdict.json"
    if not path.is_file():
        raise UserError(f"{path} does not exist. Run validate first: dvc repro validate.")
    verdict = read_json(path)
    if not verdict["passed"]:
        raise UserError(f"{path} did not pass; its profile is not accepted.")
    write_json(folder / PROFILE, verdict["profile"])
    return folder / PROFILE


def accept_split(prepared: Path, folder: Path) -> Path:
    """Keep the split that the step preprocess made.

    Raises:
        UserError: preprocess has not run.
    """
    path = prepared / SPLIT
    if not path.is_file():
        raise UserError(f"{path} does not exist. Run preprocess first: dvc repro preprocess.")
    with new_file(folder / SPLIT) as draft:
        shutil.copyfile(path, draft)
    return folder / SPLIT


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("profile", "split"), help="what to accept")
    parser.add_argument("--validated", type=Path, default=Path("data/validated"), help="(data/validated)")
    parser.add_argument("--prepared", type=Path, default=Path("data/prepared"), help="(data/prepared)")
    parser.add_argument("--baseline", type=Path, default=Path("baseline"), help="folder to write (baseline)")
    options = parser.parse_args()
    try:
        if options.what == "profile":
            kept = accept_profile(options.validated, options.baseline)
        else:
            kept = accept_split(options.prepared, options.baseline)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"accepted: {kept}. Commit it.")
