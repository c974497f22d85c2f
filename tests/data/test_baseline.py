"""The accepted profile: one with other keys is refused by a message that names the keys and the remedy."""

from pathlib import Path

import pytest

from ral.data import baseline
from ral.errors import UserError
from ral.files import write_json


def test_a_profile_with_the_keys_of_another_version_names_those_of_this_one(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    write_json(path, {"films": 240, "columns": {}, "labels": {}})
    with pytest.raises(UserError, match="it has no rows, but columns, films, labels") as error:
        baseline.read_profile(tmp_path)
    assert str(path) in str(error.value)
    assert "python -m ral.data.baseline profile" in str(error.value)
    write_json(path, {"rows": 240, "columns": {}, "labels": {}})
    assert baseline.read_profile(tmp_path) == {"rows": 240, "columns": {}, "labels": {}}
