"""Runs the pipeline with the changed parameters of a recipe.

    python -m flows.recipe recipes/comp_sum.yaml                        # here, as `dvc exp run -S …` does
    python -m flows.recipe recipes/comp_sum.yaml -S train.seed=1        # further options are those of dvc exp run
    python -m flows.recipe recipes/comp_sum.yaml --print                # only print the changes

A recipe is a YAML file with some sections and keys of params.yaml. It is checked together with params.yaml before
anything runs. params.yaml keeps the changes; `git checkout params.yaml` undoes them.
"""

import argparse
import os
import sys
from pathlib import Path

if __name__ == "__main__":  # before the imports that take seconds: --help needs none of them
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path, help="YAML file with the keys of params.yaml to change")
    parser.add_argument("--print", action="store_true", help="print the changes and run nothing")
    options, others = parser.parse_known_args()

from pydantic import ValidationError

from flows.overrides import apply_changes, to_settings
from ral.config.base import explain, read_yaml
from ral.config.params import Params
from ral.errors import UserError, exit_with_message


def settings(recipe: Path, params: Path = Path("params.yaml")) -> list[str]:
    """The changes of a recipe as values of `dvc exp run -S`.

    Args:
        recipe: YAML file with some sections and keys of params.yaml.
        params: the file that it changes.

    Raises:
        UserError: a file is missing or not YAML, the recipe is empty, a key is unknown, or a value is not allowed.
    """
    changes, content = read_yaml(recipe), read_yaml(params)
    try:
        apply_changes(content, changes)
        Params.model_validate(content)
        found = to_settings(changes)
    except ValidationError as error:
        raise UserError(explain(error, Params, recipe)) from None
    except UserError as error:
        raise UserError(f"{recipe}: {error}") from None
    if not found:
        raise UserError(f"{recipe} changes nothing. Name keys of params.yaml with their new values.")
    return found


if __name__ == "__main__":
    with exit_with_message():
        changes = settings(options.recipe)
    if options.print:
        print("\n".join(changes))
    else:
        words = [part for change in changes for part in ("-S", change)]
        os.execv(sys.executable, [sys.executable, "-m", "dvc", "exp", "run", *words, *others])
