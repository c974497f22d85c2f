"""Names that were given up stay away: identifiers, parameters, columns, files and phrases that the field has
better words for.
"""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

IDENTIFIERS = (
    "Ahead", "AHEAD", "Fitted", "StopRequest", "bad_in_a_row", "passed_over", "whole_tensors", "local_tensors", "restore_moments",
    "steps_taken", "ended_badly", "ending_with_its_worker", "by_hand", "may_help", "commit_night", "facts_of", "_take_machine",
    "_take_lock_file", "take_baseline", "at_our_death", "of_slurm", "new_folder", "Spool", "veiled", "scarce", "added_columns",
    "name_the_nearest", "Sampled", "pooled_calls", "Rival", "turn_of", "_crown", "_mend", "Evidence", "FlowsTarget",
    "read_films", "list_films", "BadFilm", "score_films", "publish_verdict", "Joined", "PixelParams", "PhaseTrainer",
    "load_export", "find_source",
)  # fmt: skip
KEYS = (
    "missing_films", "shard_films", "on_bad_film", "geometry_films", "show_films", "average_decay", "max_bad_steps",
    "average_val_macro_ap", "average_val_macro_auroc", "films_per_second", "rows_without_film",
)  # fmt: skip
FILES = ("verdict.json", "films.parquet", "average.safetensors", "facts.json")
PHRASES = (
    "packet", "packets", "film", "films", "goes on where it was", "going on from", "could not be told", "not so:", "was ended after",
    "are passed over", "is passed over", "of the averaged weights", "a model one may defend", "the whole way",
)  # fmt: skip

# Where an old name must stand: maps from old to new names, and messages about files of earlier versions.
MAPS = {
    "ral/config/base.py", "ral/inference/bundle.py", "ral/data/baseline.py", "tests/same_outputs.py", "tests/test_retired_words.py",
    "tests/config/test_config.py", "tests/release/test_registry.py", "tests/data/test_baseline.py", "CHANGELOG.md",
}  # fmt: skip


def texts() -> dict[str, str]:
    """Every tracked text of the project by its path, without what is generated or quoted."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    kept = [name for name in names.splitlines() if name not in MAPS and name not in ("dvc.lock", "LICENSE")]
    endings = (".py", ".md", ".yaml", ".yml", ".toml", ".html", ".css", ".json", "Makefile", ".ci/run")
    return {
        name: (ROOT / name).read_text() for name in kept if name.endswith(endings) and (ROOT / name).exists()
    }


@pytest.mark.parametrize("word", [*IDENTIFIERS, *KEYS, *FILES, *PHRASES])
def test_a_retired_word_is_used_nowhere(word: str) -> None:
    pattern = re.compile(rf"(?<![\w]){re.escape(word)}(?![\w])", 0 if word in IDENTIFIERS else re.IGNORECASE)
    found = [name for name, text in texts().items() if pattern.search(text)]
    assert not found, f"{word!r} stands in {', '.join(found)}"
