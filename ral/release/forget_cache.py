"""Outputs of earlier runs in a DVC cache: those of stages that read or wrote files of excluded patients."""

import json
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from ral import artifacts
from ral.errors import UserError, plain
from ral.release.forget_traces import Traces

# Outputs that are made from the source; nothing else in a cache is touched, such as data that users track with DVC.
# The weights first, the data last: see `old_objects`.
OUTPUTS = (
    str(artifacts.MODELS), str(artifacts.FEATURES), str(artifacts.REPORTS), str(artifacts.PREPARED),
    str(artifacts.VALIDATED), str(artifacts.MANIFEST),
)  # fmt: skip
# A stage of DVC: its dependencies or outputs.
_Listed = Mapping[str, str]
# Of the stages in dvc.yaml and of the one in tasks/dvc.yaml.
_LOCKS = ("dvc.lock", "tasks/dvc.lock")


@dataclass(frozen=True)
class StageRun:
    """A run of a stage that a cache, or a dvc.lock, remembers."""

    deps: _Listed
    """Path -> MD5, of `OUTPUTS` only."""
    outs: _Listed
    entry: Path | None
    """Its file in the cache of runs."""


def cache_folder(project: Path) -> Path:
    """The DVC cache of a project, from its configuration."""
    folder = project / ".dvc/cache"
    for name in ("config", "config.local"):
        parser = ConfigParser(strict=False, interpolation=None)
        text = project / ".dvc" / name
        if text.is_file():
            # DVC indents the options, which would continue the line before.
            lines = [line.strip() for line in text.read_text(encoding="utf-8").splitlines()]
            parser.read_string("\n".join(lines))
            if parser.has_option("cache", "dir"):
                folder = project / ".dvc" / parser.get("cache", "dir")
    return folder


def old_objects(
    cache: Path, projects: Iterable[Path], repositories: Iterable[Path], traces: Traces
) -> list[Path]:
    """Files of a cache that belong to runs with excluded patients and to no other run.

    The weights come first and the data, by which a run is recognized, last: an interrupted removal is found again.

    Args:
        cache: the DVC cache.
        projects: folders with a dvc.lock whose outputs are in the cache.
        repositories: git repositories with earlier versions of dvc.lock.
        traces: of the patients.

    Raises:
        UserError: git cannot read a repository.
    """
    runs = [*_cached_runs(cache), *_locked_runs(projects, repositories)]
    known: dict[tuple[str, str], bool] = {}

    def is_old(run: StageRun) -> bool:
        return any(
            known[item] if item in known else known.setdefault(item, _holds(cache, *item, traces))
            for item in (*run.deps.items(), *run.outs.items())
        )

    old = [run for run in runs if is_old(run)]
    others = [run for run in runs if run not in old]
    used = {md5 for run in others for out in run.outs.values() for md5, _ in _files(cache, out)}
    used |= {md5 for project in projects for md5 in _tracked(cache, project)}
    order = sorted(
        {item for run in old for item in run.outs.items()}, key=lambda item: OUTPUTS.index(_top(item[0]))
    )
    objects = [_object(cache, md5) for _, out in order for md5, _ in _files(cache, out) if md5 not in used]
    entries = [run.entry for run in old if run.entry is not None]
    return [path for path in dict.fromkeys([*objects, *entries]) if path.is_file()]


def _cached_runs(cache: Path) -> Iterator[StageRun]:
    for path in sorted((cache / "runs").glob("*/*/*")):
        if path.is_file() and (content := _parse(path.read_text(encoding="utf-8"))):
            yield _stage_run(content, path)


def _locked_runs(projects: Iterable[Path], repositories: Iterable[Path]) -> Iterator[StageRun]:
    texts = [
        lock.read_text(encoding="utf-8")
        for project in projects
        for name in _LOCKS
        if (lock := project / name).is_file()
    ]
    for repository in repositories:
        texts += [blob(repository, name).decode() for lock in _LOCKS for name in versions(repository, lock)]
    for text in dict.fromkeys(texts):
        for stage in (_parse(text).get("stages") or {}).values():
            yield _stage_run(stage, None)


def _stage_run(stage: Mapping[str, Any], entry: Path | None) -> StageRun:
    def listed(key: str) -> dict[str, str]:
        items = stage.get(key) or []
        return {
            item["path"]: item["md5"] for item in items if item.get("md5") and _top(item["path"]) in OUTPUTS
        }

    return StageRun(listed("deps"), listed("outs"), entry)


def _top(path: str) -> str:
    """The output of `OUTPUTS` that a path is or is in; the path itself if it is in none."""
    return next((top for top in OUTPUTS if path == top or path.startswith(f"{top}/")), path)


def _parse(text: str) -> dict[str, Any]:
    try:
        content = YAML(typ="safe").load(text)
    except YAMLError:
        return {}  # not written by DVC
    return content if isinstance(content, dict) else {}


def _tracked(cache: Path, project: Path) -> Iterator[str]:
    """Objects of data that users track with DVC (NAME.dvc)."""
    for path in project.rglob("*.dvc"):
        if path.is_file():
            for item in _parse(path.read_text(encoding="utf-8")).get("outs") or []:
                yield from (md5 for md5, _ in _files(cache, item.get("md5", "")))


def _object(cache: Path, md5: str) -> Path:
    return cache / "files/md5" / md5[:2] / md5[2:]


def _files(cache: Path, md5: str) -> list[tuple[str, str]]:
    """An object and, if it lists a folder, the objects in it, each with its name in the folder."""
    listed = [(md5, "")] if md5 else []
    if md5.endswith(".dir") and _object(cache, md5).is_file():
        content = json.loads(_object(cache, md5).read_text(encoding="utf-8"))
        listed += [(item["md5"], item["relpath"]) for item in content]
    return listed


def _holds(cache: Path, path: str, md5: str, traces: Traces) -> bool:
    return any(
        traces.in_text(name.encode()) or traces.in_file(_object(cache, each), name or path)
        for each, name in _files(cache, md5)
    )


def versions(repository: Path, name: str) -> list[str]:
    """All versions (git objects) of a file in the history of a repository, on all branches and tags.

    Raises:
        UserError: git cannot read the repository.
    """
    listed = _git(repository, "rev-list", "--all", "--objects", "--", name).decode()
    lines = (line.partition(" ") for line in listed.splitlines())
    return [digest for digest, _, path in lines if path == name]


def blob(repository: Path, digest: str) -> bytes:
    """Content of a git object."""
    return _git(repository, "cat-file", "blob", digest)


def is_repository(folder: Path) -> bool:
    """Whether a folder is a git repository, bare or with a checkout."""
    return (folder / ".git").exists() or (folder / "HEAD").is_file()


def _git(repository: Path, *arguments: str) -> bytes:
    done = subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True)
    if done.returncode:
        raise UserError(
            f"git -C {repository} {arguments[0]}: {plain(done.stderr.decode(errors='replace').strip())}"
        )
    return done.stdout
