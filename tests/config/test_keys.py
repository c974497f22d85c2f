"""The fixed keys: params.yaml lists all of them, and each can be set in every way, to the same effect."""

import itertools
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from conftest import ROOT
from dvc.exceptions import InvalidArgumentError
from dvc.utils.hydra import apply_overrides
from forks import forks
from pydantic import ValidationError
from ruamel.yaml import YAML

from flows.overrides import apply_changes, flatten, parse_word, to_setting, to_settings
from flows.workspace import change_params
from ral.config.__main__ import KNOWN_BACKBONES, markdown
from ral.config.base import RENAMED, load, read_yaml
from ral.config.keys import fixed_keys, layout, refusal, sections, set_whole
from ral.config.params import Params
from ral.errors import UserError
from ral.models import import_timm

# Values that depend on others, or that no guess below finds.
VALUES: dict[str, Any] = {
    "data.source": "mimic",
    "data.labels": "cxr_lt_2024_task1",
    "data.boxes": {"files": ["BBox_List_2017.csv"], "side": 1024},
    "data.table.file": "ours.csv",
    "data.views": ["LATERAL"],
    "data.findings": ["Round(ed) Atelectasis", "Mass"],
    "data.table.views": {"p a": "PA"},
    "data.table.sexes": {"M (maennlich)": "M", "x": None},
    "data.table.findings": {"Round(ed) Atelectasis": "Rundatelektase, rechts", "Mass": "m"},
    "model.options": {"img_size": 64, "widths": [1, 2], "act": "a=b"},
    "loss.custom.options": {"smoothing": 0.1, "weights": [1, 2.5]},
    "model.pretrained": "hub",
    "model.ml_decoder.embedding": 64,
    "explain.review": {"labels": 5, "folds": 3},
    "features.precision": "float16",
    "evaluate.confidence": 0.9,
    "train.batch_size": 256,
    "train.deepspeed_config": {"zero_optimization": {"overlap_comm": True, "sizes": [1, 2.5]}},
    "train.reweight": {"from_epoch": 9},
    "train.adversarial": {"eps": 2.0},
    "train.classifier": {"epochs": 2, "learning_rate": 1e-3, "sampler": {"name": "temperature"}},
    "evaluate.second_reading": {"file": "second.csv", "image_id": "id", "columns": {"Mass": "mass"}},
    **{
        f"robustness.shifts.{kind}": [3]
        for kind in ("jpeg", "bits", "blur", "noise", "gamma", "downscale", "rotate")
    },
    "robustness.shifts.corners": [5],
    "robustness.attacks.eps": [0.5],
    "robustness.probes.attributes": ["sex", "view"],
    "evaluate.audit.by": ["sex"],
    "evaluate.audit.age_bands": [50.5, 60],
    "gate.anchor": "v1.0.0",
    "gate.margin": 0.01,
    "gate.robustness": {"jpeg_50": 0.02, "gamma_0.7": 0.1},
}


def nested(content: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key."""
    for name in key.split("."):
        content = content[name]
    return content


def guesses(key: str, old: Any) -> Iterator[Any]:
    """Other values that may be valid for a key."""
    annotation = fixed_keys()[key].annotation
    if key in VALUES:
        yield VALUES[key]
    elif get_origin(annotation) is Literal:
        yield from (value for value in get_args(annotation) if value != old)
    elif isinstance(old, bool):
        yield not old
    elif isinstance(old, int):
        yield from (old + 1, old - 1)
    elif isinstance(old, float):
        yield from (old / 2, old * 2, old + 1, 0.5)
    elif isinstance(old, str):
        yield from ("other", "#")
    else:
        yield from (2, 0.5, "other")


def other_values() -> dict[str, Any]:
    """Another value for every fixed key; all together are valid."""
    shipped = read_yaml(ROOT / "params.yaml")
    content = deepcopy(shipped)
    first = {key: VALUES[key] for key in ("data.source", "data.labels", "data.findings", "gate.anchor")}
    first |= {"data.table.findings": VALUES["data.table.findings"]}
    apply_changes(content, first)
    chosen = {}
    for key in fixed_keys():
        for value in guesses(key, nested(shipped, key)):
            trial = deepcopy(content)
            apply_changes(trial, {key: value})
            try:
                Params.model_validate(trial)
            except ValidationError:
                continue
            content, chosen[key] = trial, value
            break
    return chosen


@pytest.fixture(scope="module")
def others() -> dict[str, Any]:
    """See `other_values`."""
    return other_values()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of params.yaml."""
    return Path(shutil.copy(ROOT / "params.yaml", tmp_path))


def test_params_yaml_has_every_key_with_its_comment() -> None:
    path = ROOT / "params.yaml"
    assert path.read_text() == layout(read_yaml(path)), (
        "params.yaml lacks keys or comments: python -m ral.config --params > new.yaml && mv new.yaml params.yaml"
    )
    keys = []
    parents: list[str] = []
    for line in path.read_text().splitlines():
        setting, mark, about = line.partition("  # ")
        if ":" not in setting or line.startswith("#"):
            continue
        assert mark, line
        assert about, line
        depth = (len(setting) - len(setting.lstrip())) // 2
        name, _, value = setting.strip().partition(":")
        parents[depth:] = [name]
        if value and value != " {}":
            keys.append(".".join(parents))
    assert keys == list(fixed_keys())


def test_the_layout_fills_in_defaults_and_keeps_values() -> None:
    content = read_yaml(ROOT / "params.yaml")
    del content["loss"]["hill"], content["model"]["head"], content["train"]["sampler"]
    content["model"]["csra"] = {"heads": 8}
    content["data"]["table"]["findings"] = {"Mass": "a: b # c"}
    filled = YAML(typ="safe", pure=True).load(layout(content))
    assert Params.model_validate(filled) == Params.model_validate(content)
    assert filled["model"]["csra"] == {"heads": 8, "lamb": 0.1}
    assert all(nested(filled, key) is not ... for key in fixed_keys())


def test_every_fixed_key_can_be_set_in_every_way(others: dict[str, Any], copy: Path, tmp_path: Path) -> None:
    assert set(others) == set(fixed_keys()) - {"loss.custom.class_path"}  # code: see the next test
    expected = read_yaml(copy)
    apply_changes(expected, others)
    assert all(nested(expected, key) == value for key, value in others.items())
    words = to_settings(others)
    for key, value in others.items():
        assert parse_word(to_setting(key, value)) == (key, [value])  # flows.compare
    by_dvc = Path(shutil.copy(copy, tmp_path / "dvc.yaml"))
    apply_overrides(by_dvc, words)  # what `dvc exp run -S` does
    change_params(copy, others)  # `changes` of a flow
    for path in (by_dvc, copy):
        written = read_yaml(path)
        assert {key: nested(written, key) for key in others} == others
        assert Params.model_validate(written) == Params.model_validate(expected)
    # Again, now that mappings and optional sections hold something, back to where they were.
    back = {key: nested(read_yaml(ROOT / "params.yaml"), key) for key in others}
    apply_overrides(by_dvc, to_settings(back))
    change_params(copy, back)
    for path in (by_dvc, copy):
        assert load(path, Params) == load(ROOT / "params.yaml", Params)
        assert "# Number of epochs" in path.read_text()


CODE = {"model.backbone": "own.nets:SmallNet", "loss.custom.class_path": "own.losses:SmoothBCE"}


@pytest.mark.parametrize("key", CODE)
def test_dvc_and_the_file_may_name_code_and_the_flows_may_not(key: str, copy: Path) -> None:
    before = copy.read_text()
    nested_change: Any = CODE[key]
    for name in reversed(key.split(".")):
        nested_change = {name: nested_change}
    for changes in ({key: CODE[key]}, nested_change):
        for refuse in (lambda changes: change_params(copy, changes), to_settings):
            with pytest.raises(UserError, match=rf"{key}: {CODE[key]} is code, .*Prefect's API"):
                refuse(changes)
    assert copy.read_text() == before
    apply_overrides(copy, [f"{key}={CODE[key]}"])  # dvc exp run -S
    assert nested(read_yaml(copy), key) == CODE[key]
    load(copy, Params)
    change_params(copy, {"train.epochs": 3, "loss.name": "ral"})  # a class that is committed stays
    assert nested(read_yaml(copy), key) == CODE[key]
    change_params(copy, {"model.backbone": "resnet18", "loss.custom.class_path": None})


@pytest.mark.parametrize("key", [key for key, field in fixed_keys().items() if set_whole(field)])
def test_what_is_set_whole_replaces_what_was_there(key: str, copy: Path) -> None:
    for value in ({"a": 1, "b": [2]}, {"c": {"d": 3}}, {}, None, {"e": None}):
        apply_overrides(copy, to_settings({key: value}))
        content = read_yaml(copy)
        apply_changes(content, {key: value})
        assert content == read_yaml(copy)
        assert nested(read_yaml(copy), key) == (value or None)


def test_the_commands_of_the_documentation_are_valid(copy: Path) -> None:
    lines = markdown().replace("\\\n", "").splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith("dvc exp run ")]
    assert len(commands) >= 3
    for command in commands:
        path = Path(shutil.copy(copy, copy.with_name("one.yaml")))
        apply_overrides(path, [word for word in command[3:] if word != "-S"])
        assert load(path, Params) != load(copy, Params)


def test_dvc_refuses_what_the_flows_refuse(copy: Path) -> None:
    for key in ("train.epoch", "train.classifier.epochs", "model.options.img_size"):
        with pytest.raises(InvalidArgumentError):
            apply_overrides(copy, [f"{key}=1"])
        with pytest.raises(UserError):
            change_params(copy, {key: 1})
    for key in ("train.classifier.epochs", "model.options.stem_width"):  # they are there
        change_params(copy, {"train.classifier": VALUES["train.classifier"]})
        change_params(copy, {key: 8})
        assert nested(read_yaml(copy), key) == 8


def test_a_section_given_as_a_mapping_is_merged(copy: Path) -> None:
    changes = {"train": {"epochs": 3, "sampler": {"name": "class_aware"}}, "train.seed": 5}
    assert flatten(changes) == {"train.epochs": 3, "train.sampler.name": "class_aware", "train.seed": 5}
    change_params(copy, changes)
    train = load(copy, Params).train
    assert (train.epochs, train.sampler.name, train.seed, train.batch_size) == (3, "class_aware", 5, 128)


def test_keys_that_params_yaml_lacks_can_be_set(copy: Path) -> None:
    content = read_yaml(copy)
    del content["model"]["csra"], content["model"]["head"]
    apply_changes(content, {"model.head": "csra", "model.csra.heads": 4})
    assert content["model"]["csra"] == {"heads": 4}
    assert Params.model_validate(content).model.head == "csra"


@pytest.mark.parametrize(
    ("key", "says"),
    [
        *((old, f"{old} is now called {new}; its values mean the same.") for old, new in RENAMED.items()),
        ("model.haed", "model.haed is not a parameter. Did you mean `model.head`?"),
        ("los.name", "los.name is not a parameter. Did you mean `loss.name`?"),
        ("nonsense", "nonsense is not a parameter. docs/parameters.md"),
        ("loss", "loss is a section: set its keys, such as loss.name."),
        ("model.options.img_size", "set model.options whole"),
        ("train.epochs.more", "train.epochs.more is not a parameter."),
    ],
)
def test_a_refusal_says_what_is_meant(key: str, says: str) -> None:
    assert says in refusal(key)
    with pytest.raises(UserError, match="^" + key.replace(".", r"\.")):
        apply_changes(read_yaml(ROOT / "params.yaml"), {key: 1})


def test_sections_are_no_keys() -> None:
    assert {"train", "train.sampler", "train.sampler.temperature"} <= sections()
    assert not sections() & set(fixed_keys())


def test_the_check_says_which_keys_differ(copy: Path) -> None:
    change_params(
        copy, {"model.head": "csra", "train.warmup": 0.1, "train.ema_decay": 0.999, "model.options": None}
    )
    command = [*forks().command("ral.config"), str(copy)]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed == (
        f"{copy} is valid; 1 of {len(fixed_keys())} keys differ from their defaults:\n"
        "  model.head: linear -> csra\n"
    )


def test_the_check_asks_timm_for_an_unusual_backbone(copy: Path) -> None:
    command = [*forks().command("ral.config"), str(copy)]
    for name, code in (("vit_tiny_patch16_224.augreg_in21k", 0), ("convnext_tny", 1)):
        change_params(copy, {"model.backbone": name})
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
    assert "has no model `convnext_tny`. Similar: convnext_tiny" in done.stderr


def test_timm_has_the_backbones_that_are_not_asked_for() -> None:
    timm = import_timm()
    assert all(timm.is_model(name) for name in KNOWN_BACKBONES)


def test_an_unused_loss_does_not_retrain(tmp_path: Path, run: Callable[..., Any]) -> None:
    """The parameters of the stages train and report, as dvc.yaml declares them, in a pipeline that is quick to run."""
    stages = read_yaml(ROOT / "dvc.yaml")["stages"]
    declared = {
        name: {"cmd": f"echo {name} > {name}.txt", "params": stages[name]["params"], "outs": [f"{name}.txt"]}
        for name in ("train", "report")
    }
    with (tmp_path / "dvc.yaml").open("w") as stream:
        YAML().dump({"stages": declared}, stream)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    run("git", "init", "-q", cwd=tmp_path)
    run("dvc", "init", "-q", cwd=tmp_path)

    def status(changes: Mapping[str, Any]) -> str:
        change_params(tmp_path / "params.yaml", changes)
        return str(run("dvc", "status", cwd=tmp_path).stdout)

    for used, unused in itertools.pairwise(("ral", "bce", "zlpr")):
        change_params(tmp_path / "params.yaml", {"loss.name": used})
        run("dvc", "repro", "-q", cwd=tmp_path)
        assert "up to date" in status({"loss.hill.margin": 3.0 if used == "ral" else 4.0})
        assert "loss.name" in status({"loss.name": unused})
    assert "up to date" in status({"loss.name": "bce"})
    changed = status({"loss.bce.pos_weight": "balanced"})
    for part in ("train:", "report:", "loss.bce"):
        assert part in changed
    change_params(tmp_path / "params.yaml", {"loss.name": "zlpr"})  # which has no options
    run("dvc", "repro", "-q", cwd=tmp_path)
    assert "up to date" in status({"loss.bce.pos_weight": "none"})
