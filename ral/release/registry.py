"""The registry of releases: GTO git tags record releases and stages, bundles contain the models.

In `state_dir`: registry.git (a bare repository with the commits and the tags), releases/<version>/ (bundles) and
champion (a symlink to the champion's bundle). The tags are the source of truth; the symlink and the promotions in the
ledger are derived from them and reconciled after a crash. `gto show --repo registry.git` reads the same tags.
"""

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ral.errors import UserError
from ral.files import flush, flush_tree, locked, private_folder
from ral.inference.bundle import verify
from ral.release.durable import atomic_symlink, clear_git_locks
from ral.release.ledger import Ledger, Promotion, Rollback

ARTIFACT = "ral"
BRANCH = "nightly"
CHAMPION, ARCHIVED = "champion", "archived"
EMAIL = "ral@localhost"

# Lock file in state_dir for writers to the registry's repository.
LOCK = ".registry.lock"


@dataclass(frozen=True)
class Release:
    """A registered model."""

    version: str
    """v0.1.0, v0.2.0, …"""
    commit: str
    """Commit of the run that trained it."""
    stage: str
    """champion, archived (a former champion) or registered."""
    bundle: Path
    """Folder of the bundle; it does not exist after the bundle was pruned."""


@dataclass(frozen=True)
class _Assignment:
    """A git tag that assigns a stage to a version."""

    tag: str
    """ral#champion#3; GTO numbers the tags across all stages."""
    version: str
    stage: str
    by: str
    message: str

    @property
    def number(self) -> int:
        """Sequence number; GTO's timestamps have a resolution of one second only."""
        return int(self.tag.rpartition("#")[2])


class Registry:
    """The releases of a state_dir.

    Args:
        state_dir: the private folder; created if needed, with an empty registry.
    """

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = private_folder(state_dir)
        self.repository = state_dir / "registry.git"
        self.folder = private_folder(state_dir / "releases")
        self.link = state_dir / "champion"
        self.ledger = Ledger(state_dir)
        self._lock = state_dir / LOCK
        with locked(self._lock):
            if not (self.repository / "HEAD").is_file():
                # The branch of the nightly runs. DVC cannot read a repository whose default branch does not exist.
                _git("init", "--quiet", "--bare", "--initial-branch", BRANCH, str(self.repository))
            clear_git_locks(self.repository)

    def releases(self) -> list[Release]:
        """All releases, oldest first."""
        registered, assignments = self._tags()
        champion = _champion(assignments)
        former_champions = {item.version for item in assignments if item.stage == CHAMPION}
        return [
            Release(
                version,
                commit,
                CHAMPION
                if version == champion
                else ARCHIVED
                if version in former_champions
                else "registered",
                self.folder / version,
            )
            for version, commit in sorted(registered.items(), key=lambda item: _version_key(item[0]))
        ]

    def dates(self) -> dict[str, datetime]:
        """Version -> time of registration in UTC."""
        lines = _git(
            "-C", str(self.repository), "for-each-ref", "--format=%(refname:short) %(creatordate:unix)",
            f"refs/tags/{ARTIFACT}@*",
        ).splitlines()  # fmt: skip
        return {
            tag.removeprefix(f"{ARTIFACT}@"): datetime.fromtimestamp(int(seconds), UTC)
            for tag, seconds in (line.split() for line in lines)
        }

    def release(self, version: str) -> Release:
        """One release.

        Raises:
            UserError: there is no release of this version.
        """
        releases = self.releases()
        for release in releases:
            if release.version == version:
                return release
        raise UserError(
            f"There is no release {version}. Releases: {', '.join(r.version for r in releases) or 'none'}."
        )

    def champion(self) -> Release | None:
        """The champion, after reconciliation with the tags; None before the first promotion."""
        with locked(self._lock):
            self._reconcile()
            return next((release for release in self.releases() if release.stage == CHAMPION), None)

    def register(self, commit: str, bundle_folder: Path) -> str:
        """Register a bundle as a release: move it into the registry, then tag the commit. Idempotent per commit.

        Args:
            commit: 40 hexadecimal digits of a commit that was pushed into the registry's repository.
            bundle_folder: a bundle (`build_bundle`) on the same file system; it is moved.

        Returns:
            The version.

        Raises:
            UserError: the commit is not in the repository, or the bundle is damaged or of another commit.
        """
        with locked(self._lock):
            registered, _ = self._tags()
            for version, registered_commit in registered.items():
                if registered_commit == commit:
                    return version
            if not re.fullmatch("[0-9a-f]{40}", commit) or not self._has_commit(commit):
                raise UserError(
                    f"{self.repository} has no commit {commit}. Push it there first: git push {self.repository} "
                    "COMMIT:refs/heads/nightly"
                )
            content = verify(bundle_folder)
            if content.commit != commit:
                raise UserError(f"{bundle_folder} is of commit {content.commit}, not of {commit}.")
            last = max((_version_key(version)[1] for version in registered), default=0)
            version = f"v0.{last + 1}.0"
            path = self.folder / version
            # Without a tag, an existing folder was left by a crash.
            shutil.rmtree(path, ignore_errors=True)
            flush_tree(bundle_folder)
            bundle_folder.rename(path)
            flush(self.folder)
            self._register(version, commit)
            return version

    def promote(self, version: str, by: str, reason: str) -> None:
        """Make a release the champion. If it already is, only reconcile what a crash left incomplete.

        Raises:
            UserError: no such release, its bundle is missing or damaged, or `by` or `reason` is empty.
        """
        self._set_champion(version, by, f"promote: {_single_line(reason)}")

    def rollback(self, by: str, reason: str, to: str | None = None) -> str:
        """Make an earlier champion the champion again.

        Args:
            by: who requested it.
            reason: why.
            to: version; None for the previous champion.

        Returns:
            The version of the new champion.

        Raises:
            UserError: there is no earlier champion, or see `promote`.
        """
        _, assignments = self._tags()
        champion = _champion(assignments)
        target = to or self.previous_champion()
        if target is None:
            raise UserError("There is no earlier champion to roll back to: see python -m ral.release list.")
        if target not in {item.version for item in assignments if item.stage == CHAMPION}:
            raise UserError(
                f"{target} was never the champion. To promote it: python -m ral.release promote {target}"
            )
        if target != champion:
            self._set_champion(target, by, f"rollback: {_single_line(reason)}")
        return target

    def previous_champion(self) -> str | None:
        """The version of the previous champion; champions that were rolled back are skipped."""
        _, assignments = self._tags()
        history: list[str] = []
        for item in assignments:
            if item.stage == CHAMPION:
                history = history[: history.index(item.version)] if item.version in history else history
                history.append(item.version)
        return history[-2] if len(history) > 1 else None

    def prune(self, keep: int, used: tuple[str, ...] = ()) -> list[str]:
        """Remove the bundles of old releases; their tags stay.

        Args:
            keep: number of newest bundles to keep.
            used: further versions to keep, such as the anchor. The champion and the previous champion are always kept.

        Returns:
            Versions whose bundle was removed.
        """
        with locked(self._lock):
            self._reconcile()
            releases = [release for release in self.releases() if release.bundle.is_dir()]
            newest = {release.version for release in (releases[-keep:] if keep else [])}
            protected = newest | {*used, self.previous_champion()}
            pruned = [r for r in releases if r.stage != CHAMPION and r.version not in protected]
            for release in pruned:
                # Renamed first, so that a crash leaves no incomplete bundle under the release's name.
                target = self.folder / f".{release.version}.pruned"
                release.bundle.rename(target)
            for path in self.folder.glob(".*.pruned"):
                shutil.rmtree(path)
            return [release.version for release in pruned]

    def _set_champion(self, version: str, by: str, message: str) -> None:
        release = self.release(version)
        verify(release.bundle)
        with locked(self._lock):
            _, assignments = self._tags()
            if _champion(assignments) != release.version:
                # git does not allow these characters in a name.
                self._assign(CHAMPION, version, _single_line(re.sub("[<>]", "", by)), message)
            self._reconcile()

    def _reconcile(self) -> None:
        """Update the archived tag, the ledger and the symlink to match the newest champion tag."""
        _, assignments = self._tags()
        champions = [item for item in assignments if item.stage == CHAMPION]
        for item in champions:
            what, _, reason = item.message.partition(": ")
            kind = {"promote": Promotion, "rollback": Rollback}.get(what)
            if kind is None:  # assigned with the gto command
                kind, reason = Promotion, item.message
            self.ledger.append(kind(tag=item.tag, version=item.version, by=item.by, reason=reason))
        if not champions:
            return
        last = champions[-1]
        previous = next((item.version for item in reversed(champions) if item.version != last.version), None)
        archived = any(
            item.stage == ARCHIVED and item.version == previous and item.number > last.number
            for item in assignments
        )
        if previous and not archived:
            self._assign(ARCHIVED, previous, last.by, f"{last.version} is the champion")
        target = f"{self.folder.name}/{last.version}"
        if not self.link.is_symlink() or os.readlink(self.link) != target:
            atomic_symlink(self.link, target)

    def _tags(self) -> tuple[dict[str, str], list[_Assignment]]:
        """Read the tags with GTO: version -> commit, and the stage assignments in order."""
        from gto import api

        registered, assignments = {}, []
        for event in api.history(str(self.repository), artifact=ARTIFACT, ascending=True):
            if event["event"] == "registration":
                registered[event["version"]] = event["commit"]
            elif event["event"] == "assignment":
                fields = (event[name] for name in ("ref", "version", "stage", "author", "message"))
                assignments.append(_Assignment(*fields))
        return registered, sorted(assignments, key=lambda item: item.number)

    def _register(self, version: str, commit: str) -> None:
        from gto import api

        api.register(
            str(self.repository), ARTIFACT, commit, version=version, message=f"register {version}",
            author=ARTIFACT, author_email=EMAIL,
        )  # fmt: skip

    def _assign(self, stage: str, version: str, by: str, message: str) -> None:
        from gto import api

        self._wait_for_next_second(stage)
        api.assign(
            str(self.repository), ARTIFACT, stage, version=version, message=message,
            author=by, author_email=EMAIL, force=True,  # a former champion may be assigned again
        )  # fmt: skip

    def _wait_for_next_second(self, stage: str) -> None:
        """GTO sorts the tags of a stage by timestamps in seconds: two tags within one second have no defined order."""
        tag_format = "--format=%(taggerdate:unix)"
        times = _git("-C", str(self.repository), "tag", "--list", f"{ARTIFACT}#{stage}#*", tag_format).split()
        last = max((int(text) for text in times), default=0)
        if 0 <= time.time() - last < 1:
            time.sleep(last + 1 - time.time())

    def _has_commit(self, commit: str) -> bool:
        command = ["git", "-C", str(self.repository), "cat-file", "-e", f"{commit}^{{commit}}"]
        return subprocess.run(command, capture_output=True).returncode == 0


def _champion(assignments: list[_Assignment]) -> str | None:
    return next((item.version for item in reversed(assignments) if item.stage == CHAMPION), None)


def _version_key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _single_line(text: str) -> str:
    """A name or a reason as a single line, for a tag and the ledger."""
    line = " ".join(text.split())
    if not line:
        raise UserError("--by and --reason must not be empty.")
    return line


def _git(*arguments: str) -> str:
    """Run git and return its output.

    Raises:
        UserError: git is not installed or fails.
    """
    try:
        process = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except OSError as error:
        raise UserError(f"git cannot be started ({error}): the registry needs it.") from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"git {' '.join(arguments)}: {error.stderr.strip()}") from None
    return process.stdout
