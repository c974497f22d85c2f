"""Each source through DVC: an edit of its own reader reruns what reads by it, an edit of another reader
reruns nothing.
"""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import shipped
from conftest import SMALL, copy_project, set_params
from ruamel.yaml import YAML
from stages import sources

Run = Callable[..., subprocess.CompletedProcess[str]]
READERS = {f"ral/data/sources/{source}.py" for source in sources()}
READING = {"validate", "preprocess"}


def data_section(source: str, root: Path) -> dict[str, object]:
    """A small data folder of a source, and the section `data` of params.yaml for it; nih: the phantom images."""
    if source == "nih":
        return {"source": "nih"}
    section = shipped.write(source, root)
    return section | ({"findings": ["Effusion", "Cardiomegaly"]} if source == "table" else {})


def prepared(source: str, folder: Path, run: Run) -> Path:
    """A copy of the project in which the raw data of a source has been prepared."""
    copy_project(folder)
    section = data_section(source, folder.parent / "images")
    table = section.pop("table", {})
    method = "official" if source in {"nih", *shipped.OFFICIAL} else "stratified"
    set_params(folder, SMALL | {"data": section, "split": {"method": method, "val": 0.2}})
    yaml = YAML()
    content = yaml.load((folder / "params.yaml").read_text())
    content["data"]["table"] = table
    with (folder / "params.yaml").open("w") as stream:
        yaml.dump(content, stream)
    run("dvc", "repro", "preprocess", cwd=folder)
    return folder


def stale(folder: Path, run: Run, edited: str) -> set[str]:
    """Stages up to preprocess that DVC would run for a reason after an edit of a file; the edit stays."""
    file = folder / edited
    file.write_text(file.read_text() + "# edited\n")
    status = json.loads(run("dvc", "status", "--json", "--with-deps", "preprocess", cwd=folder).stdout)
    return {stage for stage, reasons in status.items() if reasons != ["always changed"]}


def readers_in_lock(folder: Path) -> set[str]:
    """Readers that the lock file names."""
    return READERS & set(re.findall(r"path: (\S+)", (folder / "dvc.lock").read_text()))


@pytest.mark.long
@pytest.mark.parametrize("source", sources())
def test_only_the_chosen_reader_is_a_dependency(run: Run, tmp_path: Path, source: str) -> None:
    folder = prepared(source, tmp_path / "project", run)
    own = f"ral/data/sources/{source}.py"
    assert readers_in_lock(folder) == {own}
    for other in sorted(READERS - {own}):
        assert stale(folder, run, other) == set(), other
    assert stale(folder, run, own) == READING
    again = run("dvc", "repro", "preprocess", cwd=folder).stdout
    assert set(re.findall("Running stage '(.*)'", again)) >= READING
    assert stale(folder, run, "README.md") == set()


@pytest.mark.long
def test_an_experiment_with_another_source_depends_on_its_reader(run: Run, tmp_path: Path) -> None:
    folder = prepared("nih", tmp_path / "project", run)
    run("git", "add", "-A", cwd=folder)
    run(
        "git", "-c", "user.name=test", "-c", "user.email=test@example.org", "commit", "-qm", "run", cwd=folder
    )
    section = data_section("chexpert", tmp_path / "images")
    changes = [f"data.{key}={json.dumps(value)}" for key, value in section.items()]
    run(
        "dvc",
        "exp",
        "run",
        *(word for change in changes for word in ("-S", change)),
        "preprocess",
        cwd=folder,
    )
    assert "train.csv" in json.loads((folder / "data/validated/validation.json").read_text())["files"]
    assert readers_in_lock(folder) == {"ral/data/sources/chexpert.py"}
    assert stale(folder, run, "ral/data/sources/nih.py") == set()
    assert stale(folder, run, "ral/data/sources/chexpert.py") == READING
