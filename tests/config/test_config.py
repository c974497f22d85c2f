"""params.yaml: strict, and its errors name the key and what it may be."""

import subprocess
from pathlib import Path

import pytest
from forks import forks
from pydantic import ValidationError
from ruamel.yaml import YAML

from ral.config.base import RENAMED, load, read_yaml
from ral.config.params import Params
from ral.config.train import TrainParams
from ral.errors import UserError

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def changed(tmp_path: Path):
    """params.yaml with one text replaced."""

    def change(old: str, new: str) -> Path:
        text = (ROOT / "params.yaml").read_text()
        assert old in text
        path = tmp_path / "params.yaml"
        path.write_text(text.replace(old, new, 1))
        return path

    return change


def test_default_is_valid() -> None:
    params = load(ROOT / "params.yaml", Params)
    assert params.data.root == "data/phantom"


def test_yaml_is_read_as_dvc_reads_it() -> None:
    assert load(ROOT / "params.yaml", TrainParams).train.learning_rate == 3e-3  # PyYAML: the text "3e-3"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("  epochs:", "  epoch:", ["train", "unknown key `epoch`", "Did you mean `epochs`?", "batch_size"]),
        ("evaluate:", "evaluat:", ["unknown key `evaluat`", "Did you mean `evaluate`?", "preprocess"]),
        ("threads: 2", "threads: two", ["train.threads", "integer", "'two'"]),
        ("threads: 2", "threads: '2'", ["train.threads", "integer", "'2'"]),
        ("flip: 0.5", "flip: 2", ["train.augment.flip", "less than or equal to 1"]),
        ("source: nih", "source: nhi", ["data.source", "'nih'", "'nhi'"]),
        ("name: ral", "name: lar", ["loss.name", "'ral'", "'bce'", "'zlpr'"]),
        (
            "deepspeed_config: null",
            "deepspeed_config: {fp16: {enabled: true}}",
            ["train", "may not set fp16: precision"],
        ),
        ("micro_batch: null", "micro_batch: 7", ["micro_batch (7) must divide batch_size"]),
        ("tail: 0.01", "tail: 0.5", ["evaluate", "tail (0.5) must be below head (0.1)"]),
        ("  method: official ", "  #", ["split.method", "missing"]),
        ("test: 0.2", "test: .nan", ["split.test", "nan"]),
        ("views: [PA, AP]", "views: []", ["data.views", "at least 1"]),
        (
            "views: [PA, AP]",
            "views: [PA, XX]",
            ["data.views.1", "'PA', 'AP', 'FRONTAL', 'LATERAL' or 'OTHER'"],
        ),
        ("views: [PA, AP]", "views: [PA, PA]", ["data.views", "twice"]),
        ("findings: null", "findings: [Efusion]", ["data.findings", "Did you mean `Effusion`?", "Hernia"]),
        ("findings: null", "findings: [Mass, Mass]", ["data.findings", "twice"]),
        ("seed: 1", "seed: 4294967296", ["phantom.seed", "less than 2147483648"]),
    ],
)
def test_error_names_key_and_allowed_values(changed, old: str, new: str, words: list[str]) -> None:
    path = changed(old, new)
    with pytest.raises(UserError) as caught:
        load(path, Params)
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_step_ignores_other_sections_but_not_unknown_ones(changed) -> None:
    load(changed("replicates: 1000", "replicates: x"), TrainParams)
    with pytest.raises(UserError):
        load(changed("report:", "reports:"), TrainParams)


def test_missing_file_and_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "params.yaml", Params)
    (tmp_path / "params.yaml").write_text("a: [1")
    with pytest.raises(UserError, match="not valid YAML"):
        load(tmp_path / "params.yaml", Params)
    (tmp_path / "params.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="top level"):
        load(tmp_path / "params.yaml", Params)


def test_parameters_are_frozen() -> None:
    params = load(ROOT / "params.yaml", TrainParams)
    with pytest.raises(ValidationError, match="frozen"):
        params.train.epochs = 3  # type: ignore[misc]


def test_command_checks_the_whole_file(changed) -> None:
    command = forks().command("ral.config")
    assert subprocess.run([*command, "params.yaml"], cwd=ROOT).returncode == 0
    bad = subprocess.run(
        [*command, str(changed("title:", "titel:"))], cwd=ROOT, capture_output=True, text=True
    )
    assert bad.returncode == 1
    assert "Did you mean `title`?" in bad.stderr


def test_docs_list_every_parameter() -> None:
    written = (ROOT / "docs/parameters.md").read_text()
    command = [*forks().command("ral.config"), "--markdown"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert written == made, (
        "docs/parameters.md is out of date: python -m ral.config --markdown > docs/parameters.md"
    )


@pytest.mark.parametrize("old", RENAMED)
def test_a_key_of_an_earlier_version_names_the_new_one(old: str, tmp_path: Path) -> None:
    new = RENAMED[old]
    section, key = new.split(".")
    assert hasattr(getattr(load(ROOT / "params.yaml", Params), section), key)
    content = read_yaml(ROOT / "params.yaml")
    content[section] = {old.split(".")[1]: content[section].pop(key), **content[section]}
    with (tmp_path / "params.yaml").open("w") as stream:
        YAML().dump(content, stream)
    with pytest.raises(UserError) as caught:
        load(tmp_path / "params.yaml", Params)
    assert str(caught.value) == (
        f"{tmp_path / 'params.yaml'}: {old} is now called {new}. Rename the key; its values mean the same."
    )
