"""The accepted profile, split and logits in the versioned folder baseline/, against which later runs are compared.

    python -m ral.data.baseline profile    # baseline/profile.json from data/validated/validation.json
    python -m ral.data.baseline split      # baseline/split.parquet from data/prepared/split.parquet
    python -m ral.data.baseline logits     # baseline/test_logits.parquet from models/logits/test.parquet

Accepting is a manual decision and never automatic; commit the file afterwards. If a file is missing, nothing is
compared.
"""

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from ral import artifacts
from ral.data.validation.result import Profile, ValidationResult
from ral.errors import UserError, exit_with_message
from ral.files import atomic_write, read_json
from ral.records import problem

if TYPE_CHECKING:
    import pandas as pd

PROFILE, SPLIT, LOGITS = "profile.json", "split.parquet", "test_logits.parquet"


def read_profile(folder: Path) -> Profile | None:
    """The accepted profile, or None.

    Raises:
        UserError: the file is not a profile, or a profile with other keys, such as one of an earlier version.
    """
    path = folder / PROFILE
    if not path.is_file():
        return None
    remedy = "Delete it, run `dvc repro validate`, then accept a new profile: `python -m ral.data.baseline profile`."
    try:
        content = dict(read_json(path))
    except (ValueError, TypeError):
        raise UserError(f"{path} is not a profile. {remedy}") from None
    missing = [
        name for name, field in Profile.model_fields.items() if field.is_required() and name not in content
    ]
    if missing:
        raise UserError(
            f"{path} is not a profile of this version: it has no {', '.join(missing)}, but "
            f"{', '.join(map(str, content)) or 'nothing'}. {remedy}"
        )
    try:
        return Profile.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path} is not a profile of this version ({problem(error)}). {remedy}") from None


def read_split(folder: Path) -> "pd.Series | None":
    """Split by patient id of the accepted split, or None.

    Raises:
        UserError: the file is not a split, or lists a patient twice.
    """
    import pandas as pd

    path = folder / SPLIT
    if not path.is_file():
        return None
    try:
        table = pd.read_parquet(path, columns=["patient_id", "split"])
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"{path} is not a split ({error}). Delete it, or accept a new one.") from None
    if table["patient_id"].duplicated().any() or not table["split"].isin(("train", "val", "test")).all():
        raise UserError(f"{path} lists a patient twice, or has an unknown split name. Accept a new one.")
    return table.set_index("patient_id")["split"]


def read_logits(folder: Path) -> "pd.DataFrame | None":
    """Test logits of the accepted model (image_id and a column per finding), or None.

    Raises:
        UserError: the file is not such a table.
    """
    import pandas as pd

    path = folder / LOGITS
    if not path.is_file():
        return None
    try:
        table = pd.read_parquet(path)
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not a Parquet table ({error}). Delete it, or accept a new one.") from None
    if "image_id" not in table.columns:
        raise UserError(f"{path} has no column image_id. Delete it, or accept a new one.")
    return table


def accept_profile(validated: Path, folder: Path) -> Path:
    """Accept the profile of the validated data as the baseline.

    Raises:
        UserError: validate has not run, or the data did not pass.
    """
    path = validated / artifacts.VALIDATION.name
    if not path.is_file():
        raise UserError(f"{path} does not exist. Run validate first: dvc repro validate.")
    validation = ValidationResult.read(path)
    if not validation.passed:
        raise UserError(f"{path}: the data did not pass validation, so its profile cannot be accepted.")
    validation.profile.write(folder / PROFILE)
    return folder / PROFILE


def accept_split(prepared: Path, folder: Path) -> Path:
    """Accept the split of the prepared data as the baseline.

    Raises:
        UserError: preprocess has not run.
    """
    return _accept(prepared / SPLIT, folder / SPLIT, "preprocess")


def accept_logits(models: Path, folder: Path) -> Path:
    """Accept the test logits of the trained model as the baseline for later models.

    Raises:
        UserError: train has not run.
    """
    return _accept(models / artifacts.LOGITS.name / artifacts.logits("test").name, folder / LOGITS, "train")


def _accept(path: Path, destination: Path, stage: str) -> Path:
    if not path.is_file():
        raise UserError(f"{path} does not exist. Run {stage} first: dvc repro {stage}.")
    with atomic_write(destination) as draft:
        shutil.copyfile(path, draft)
    return destination


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("profile", "split", "logits"), help="what to accept")
    parser.add_argument("--validated", type=Path, default=Path(artifacts.VALIDATED), help="(data/validated)")
    parser.add_argument("--prepared", type=Path, default=Path(artifacts.PREPARED), help="(data/prepared)")
    parser.add_argument("--models", type=Path, default=Path(artifacts.MODELS), help="(models)")
    parser.add_argument(
        "--baseline", type=Path, default=Path(artifacts.BASELINE), help="folder to write (baseline)"
    )
    options = parser.parse_args()
    with exit_with_message():
        if options.what == "profile":
            accepted = accept_profile(options.validated, options.baseline)
        elif options.what == "split":
            accepted = accept_split(options.prepared, options.baseline)
        else:
            accepted = accept_logits(options.models, options.baseline)
    print(f"accepted: {accepted}. Commit it.")
