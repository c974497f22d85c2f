"""Classes of the user's own: which files are hashed, and what every mistake says."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

from ral.config.losses import LossConfig
from ral.config.model import ModelConfig
from ral.errors import UserError
from ral.files import sha256
from ral.user_code import files_in_use, load_class, source_files

KEY = "model.backbone"
NET = "from torch import nn\nclass Net(nn.Module):\n    pass\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty project folder; modules that are imported from it are forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)) or name == "own":
            del sys.modules[name]


def write(project: Path, **files: str) -> None:
    """Write modules: own__nets="…" is own/nets.py."""
    for name, text in files.items():
        path = project / (name.replace("__", "/") + ".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def test_the_hash_covers_what_the_file_imports(project: Path) -> None:
    write(
        project,
        own__nets="import torch\nfrom . import layers\nfrom ral.models import heads\n\ndef f():\n    import helper\n",
        own__layers="from own.deeper import x\nfrom .missing import y\n",
        own__deeper="x = 1\n",
        own__other="not = imported\n",
        helper="",
    )
    (project / "own/__init__.py").write_text("")
    files = source_files(KEY, "own.nets:Net")
    assert list(files) == ["helper.py", "own/__init__.py", "own/deeper.py", "own/layers.py", "own/nets.py"]
    assert files["own/nets.py"] == sha256(project / "own/nets.py")


def test_only_classes_in_use_are_hashed(project: Path) -> None:
    write(project, own__nets=NET, own__losses="")
    custom = {"class_path": "own.losses:Mine", "options": {}}
    plain = {"model": {"backbone": "resnet18"}, "loss": {"name": "ral", "custom": custom}}
    assert files_in_use(plain) == {"loss": {}, "network": {}}
    both = {"model": {"backbone": "own.nets:Net"}, "loss": {"name": "custom", "custom": custom}}
    assert {part: list(files) for part, files in files_in_use(both).items()} == {
        "loss": ["own/losses.py"],
        "network": ["own/nets.py"],
    }


def test_a_class_is_imported(project: Path) -> None:
    write(project, own__nets=NET)
    assert load_class(KEY, "own.nets:Net", nn.Module).__name__ == "Net"


WRONG = {
    "no file": ({}, "own.nets:Net", r"there is no file own/nets\.py in the project folder .*commit it"),
    "no class": ({"own__nets": NET}, "own.nets:Nett", r"nets\.py has no class Nett\. Did you mean `Net`\?"),
    "a function": ({"own__nets": "def Net(): pass\n"}, "own.nets:Net", r"is not a subclass of torch\.nn.*Module"),
    "another base": ({"own__nets": "class Net: pass\n"}, "own.nets:Net", "is not a subclass"),
    "not Python": ({"own__nets": "x = 1\nclass Net(:\n"}, "own.nets:Net", r"SyntaxError in line 2"),
    "an exception": ({"own__nets": "x = 1\n1 / 0\n"}, "own.nets:Net", r"nets\.py, line 2: ZeroDivisionError"),
    "a missing package": ({"own__nets": "import nopackage\n"}, "own.nets:Net", r"line 1: ModuleNotFoundError: .*nopackage"),
    "a name of Python's": ({"json": NET}, "json:Net", "the name json belongs to .*Give your file another name"),
    "an import that is not seen": (
        {"own__nets": "import importlib\nimportlib.import_module('own.hidden')\n" + NET, "own__hidden": ""},
        "own.nets:Net", r"own\.nets loads .*hidden\.py.*Write a plain `import own\.hidden`",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_names_the_key_and_the_remedy(project: Path, name: str) -> None:
    files, path, words = WRONG[name]
    write(project, **files)
    with pytest.raises(UserError, match=words) as caught:
        load_class(KEY, path, nn.Module)
    assert str(caught.value).startswith(f"{KEY}: ")


@pytest.mark.parametrize(
    "path", ["own.nets", "own/nets.py:Net", "own.nets:Net()", ":Net", "own.nets:", "os:system:x"]
)
def test_a_path_of_another_form_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"package\.module:Class"):
        LossConfig(name="custom", custom={"class_path": path})
    if ":" in path:
        with pytest.raises(ValueError, match=r"package\.module:Class"):
            ModelConfig(backbone=path)


def test_a_custom_loss_needs_its_class() -> None:
    with pytest.raises(ValueError, match=r"custom\.class_path is null"):
        LossConfig(name="custom")
    assert LossConfig(name="ral", custom={"class_path": "own.losses:Mine"}).title == "ral"
    assert LossConfig(name="custom", custom={"class_path": "own.losses:Mine"}).title == "own.losses:Mine"


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"head": "csra"}, "set head to linear"), ({"pretrained": "hub"}, "no weights on the hub")],
)
def test_what_an_own_network_cannot_have(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ModelConfig(backbone="own.nets:Net", **changes)
