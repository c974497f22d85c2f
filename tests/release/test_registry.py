"""Registry: GTO reads the tags, a crash after any step is recovered from, bundles are verified."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ral.errors import UserError
from ral.inference.bundle import verify
from ral.release import registry as module
from ral.release.ledger import Promotion
from ral.release.registry import Registry

Make = Callable[..., Any]


def gto(registry: Registry, *arguments: str) -> Any:
    """Output of the gto command for the repository."""
    command = [str(Path(sys.executable).parent / "gto"), "show", "--repo", str(registry.repository), "--json"]
    return json.loads(subprocess.run([*command, *arguments], check=True, capture_output=True).stdout)


def events(registry: Registry) -> list[Promotion]:
    """The ledger's promotions and rollbacks; there is nothing else in it."""
    found = [entry.event for entry in registry.ledger.entries()]
    assert all(isinstance(event, Promotion) for event in found)
    return found


def test_an_empty_registry_has_no_champion(registry: Registry) -> None:
    assert registry.champion() is None
    assert registry.releases() == []
    with pytest.raises(UserError, match=r"no release v0\.1\.0.*none"):
        registry.promote("v0.1.0", "Ada", "why not")
    with pytest.raises(UserError, match="no earlier champion"):
        registry.rollback("Ada", "why not")


def test_versions_count_up_and_gto_lists_them(registry: Registry, release: Make) -> None:
    assert [release("one"), release("two")] == ["v0.1.0", "v0.2.0"]
    registry.promote("v0.1.0", "Ada <a>", "the\nfirst")
    assert gto(registry)["ral"]["stage"] == {"champion": "v0.1.0"}
    registry.promote("v0.2.0", "gate", "better")
    assert gto(registry)["ral"]["stage"] == {"champion": "v0.2.0", "archived": "v0.1.0"}
    champion = registry.champion()
    assert champion is not None
    assert champion.version == "v0.2.0"
    assert [release.stage for release in registry.releases()] == ["archived", "champion"]
    assert registry.link.resolve() == registry.folder / "v0.2.0"
    assert events(registry) == [
        Promotion(tag="ral#champion#1", version="v0.1.0", by="Ada a", reason="the first"),
        Promotion(tag="ral#champion#2", version="v0.2.0", by="gate", reason="better"),
    ]


def test_registering_a_commit_again_changes_nothing(
    registry: Registry, commit: Make, draft: Make, release: Make
) -> None:
    first = commit("one")
    assert registry.register(first, draft(first)) == "v0.1.0"
    assert release("two") == "v0.2.0"
    assert registry.register(first, Path("nowhere")) == "v0.1.0"
    assert len(registry.releases()) == 2


def test_what_does_not_fit_is_not_registered(registry: Registry, commit: Make, draft: Make) -> None:
    with pytest.raises(UserError, match="Push it there first"):
        registry.register("0" * 40, draft("0" * 40))
    with pytest.raises(UserError, match="Push it there first"):
        registry.register("--help", draft("--help"))
    made = commit("one")
    with pytest.raises(UserError, match="is of commit"):
        registry.register(made, draft("f" * 40))
    folder = draft(made)
    (folder / "model").write_text("other bytes")
    with pytest.raises(UserError, match="has changed since it was registered"):
        registry.register(made, folder)
    assert registry.releases() == []


def test_a_damaged_bundle_is_no_champion(registry: Registry, release: Make) -> None:
    release("one")
    (registry.folder / "v0.1.0" / "model").write_text("other bytes")
    with pytest.raises(UserError, match="has changed since it was registered"):
        registry.promote("v0.1.0", "Ada", "why not")
    (registry.folder / "v0.1.0" / "model").unlink()
    with pytest.raises(UserError, match="is missing"):
        registry.promote("v0.1.0", "Ada", "why not")
    assert registry.champion() is None


def test_a_bundle_of_an_earlier_version_says_what_to_do(registry: Registry, release: Make) -> None:
    folder = registry.folder / release("one")
    (folder / "bundle.json").rename(folder / "manifest.json")
    with pytest.raises(UserError, match="is a release bundle of an earlier version") as error:
        registry.promote("v0.1.0", "Ada", "why not")
    assert str(folder) in str(error.value)
    assert "python -m flows.nightly" in str(error.value)
    assert registry.champion() is None


def test_rollback_goes_to_the_champion_before(registry: Registry, release: Make) -> None:
    for text in ("one", "two", "three"):
        registry.promote(release(text), "gate", text)
    assert registry.rollback("Ada", "it misses") == "v0.2.0"
    assert gto(registry)["ral"]["stage"] == {"champion": "v0.2.0", "archived": "v0.3.0"}
    assert registry.link.resolve() == registry.folder / "v0.2.0"
    assert registry.rollback("Ada", "it misses, too") == "v0.1.0"
    with pytest.raises(UserError, match="no earlier champion"):
        registry.rollback("Ada", "further")
    assert registry.rollback("Ada", "after all", to="v0.3.0") == "v0.3.0"
    assert registry.rollback("Ada", "after all", to="v0.3.0") == "v0.3.0"
    whats = [event.what for event in events(registry)]
    assert whats == ["promote"] * 3 + ["rollback"] * 3
    release("four")
    with pytest.raises(UserError, match="never the champion"):
        registry.rollback("Ada", "wrong word", to="v0.4.0")


def test_a_champion_assigned_with_gto_itself_is_written_down(registry: Registry, release: Make) -> None:
    release("one")
    command = [str(Path(sys.executable).parent / "gto"), "assign", "--repo", str(registry.repository), "ral"]
    who = {"GIT_COMMITTER_NAME": "Ada", "GIT_COMMITTER_EMAIL": "ada@example.org", **os.environ}
    subprocess.run([*command, "--version", "v0.1.0", "--stage", "champion"], check=True, env=who)
    champion = registry.champion()
    assert champion is not None
    assert champion.version == "v0.1.0"
    assert events(registry)[-1].what == "promote"
    assert registry.link.resolve() == champion.bundle


def test_who_and_why_must_be_said(registry: Registry, release: Make) -> None:
    release("one")
    for by, reason in (("", "why"), ("Ada", " \n")):
        with pytest.raises(UserError, match="must not be empty"):
            registry.promote("v0.1.0", by, reason)
    assert registry.champion() is None


class Crash(Exception):
    """Stands in for a killed process."""


def crash(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, when: str, call: int = 1) -> None:
    """Let a step end the process before or after its work, at its `call`-th time."""
    work, calls = getattr(owner, name), []

    def step(*arguments: Any, **named: Any) -> Any:
        calls.append(name)
        if len(calls) == call and when == "before":
            raise Crash
        result = work(*arguments, **named)
        if len(calls) == call:
            raise Crash
        return result

    monkeypatch.setattr(owner, name, step)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["verify", "flush_tree", "rename", "_register"])
def test_register_survives_a_crash_at_every_step(
    registry: Registry, commit: Make, draft: Make, release: Make, step: str, when: str
) -> None:
    release("zero")
    made = commit("one")
    folder = draft(made, "first try")
    owner: Any = {"verify": module, "flush_tree": module, "rename": Path, "_register": registry}[step]
    with pytest.MonkeyPatch.context() as patch:
        crash(patch, owner, step, when)
        with pytest.raises(Crash):
            registry.register(made, folder)
    again = Registry(registry.state_dir)
    assert [r.version for r in again.releases()] == ["v0.1.0"] + ["v0.2.0"] * (
        (step, when) == ("_register", "after")
    )
    if not folder.exists():
        folder = draft(made, "second try")
    assert again.register(made, folder) == "v0.2.0"
    verify(again.release("v0.2.0").bundle)
    assert len(again.releases()) == 2


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("step", "call"), [("_assign", 1), ("append", 1), ("append", 2), ("_assign", 2), ("atomic_symlink", 1)]
)
def test_promotion_survives_a_crash_at_every_step(
    registry: Registry, release: Make, step: str, call: int, when: str
) -> None:
    registry.promote(release("one"), "gate", "first")
    release("two")
    owner: Any = {"_assign": registry, "append": registry.ledger, "atomic_symlink": module}[step]
    with pytest.MonkeyPatch.context() as patch:
        crash(patch, owner, step, when, call)
        with pytest.raises(Crash):
            registry.promote("v0.2.0", "gate", "better")
    again = Registry(registry.state_dir)
    champion = again.champion()
    assert champion is not None
    # The tag decides: before it nothing has happened, after it everything follows.
    done = (step, when) != ("_assign", "before") or call == 2
    assert champion.version == ("v0.2.0" if done else "v0.1.0")
    assert again.link.resolve() == again.folder / champion.version
    again.promote("v0.2.0", "gate", "better")
    assert gto(again)["ral"]["stage"] == {"champion": "v0.2.0", "archived": "v0.1.0"}
    assert [event.version for event in events(again)] == ["v0.1.0", "v0.2.0"]
    assert again.link.resolve() == again.folder / "v0.2.0"
    assert not list(again.state_dir.glob(".champion.*"))


def test_prune_removes_nothing_while_there_are_fewer_bundles_than_it_keeps(
    registry: Registry, release: Make
) -> None:
    for text in ("one", "two", "three"):
        release(text)
    assert registry.prune(keep=5) == []
    assert all(release.bundle.is_dir() for release in registry.releases())


def test_prune_keeps_what_may_be_needed(registry: Registry, release: Make) -> None:
    versions = [release(text) for text in ("one", "two", "three", "four", "five", "six")]
    for version in versions[1:3]:
        registry.promote(version, "gate", "better")
    assert registry.prune(keep=1, used=("v0.1.0",)) == ["v0.4.0", "v0.5.0"]
    remaining = [release.version for release in registry.releases() if release.bundle.is_dir()]
    assert remaining == ["v0.1.0", "v0.2.0", "v0.3.0", "v0.6.0"]
    assert registry.prune(keep=0) == ["v0.1.0", "v0.6.0"]
    assert not list(registry.folder.glob(".*"))
    with pytest.raises(UserError, match="no bundle"):
        registry.promote("v0.4.0", "Ada", "too late")
    assert len(registry.releases()) == 6
