"""The registry of releases: GTO's git tags say what is registered and which one is the champion, bundles hold the models.

In `state_dir`: registry.git (a bare repository with the commits and the tags), releases/<version>/ (bundles) and
champion (a symlink to the champion's bundle). The tags are the truth; the link and the ledger's lines of promotions
follow from them and are mended after a crash. `gto show --repo registry.git` reads the same tags.
"""

import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from ral.errors import UserError
from ral.files import private_folder
from ral.release.bundle import verify
from ral.release.durable import clear_git_locks, flush, flush_tree, locked, point
from ral.release.ledger import Ledger

ARTIFACT = "ral"
CHAMPION, ARCHIVED = "champion", "archived"
EMAIL = "ral@localhost"

# In state_dir: held by whoever writes to the registry's repository.
LOCK = ".registry.lock"


@dataclass(frozen=True)
class Release:
    """A registered model."""

    version: str
    """v0.1.0, v0.2.0, …"""
    commit: str
    """Of the run that trained it."""
    stage: str
    """champion, archived (it was the champion) or registered."""
    bundle: Path
    """Its folder, which is gone once it was pruned."""


@dataclass(frozen=True)
class _Assignment:
    """A tag that gives a version a stage."""

    tag: str
    """ral#champion#3: GTO counts up, over all stages."""
    version: str
    stage: str
    by: str
    message: str

    @property
    def number(self) -> int:
        """Index in the order; GTO's times have whole seconds and cannot tell."""
        return int(self.tag.rpartition("#")[2])


class Registry:
    """The releases of a state_dir.

    Args:
        state_dir: the private folder; made if needed, with an empty registry.
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
                _git("init", "--quiet", "--bare", str(self.repository))
            clear_git_locks(self.repository)

    def releases(self) -> list[Release]:
        """All releases, oldest first."""
        registered, assignments = self._tags()
        champion = _champion(assignments)
        once = {item.version for item in assignments if item.stage == CHAMPION}
        return [
            Release(
                version,
                commit,
                CHAMPION if version == champion else ARCHIVED if version in once else "registered",
                self.folder / version,
            )
            for version, commit in sorted(registered.items(), key=lambda item: _key(item[0]))
        ]

    def release(self, version: str) -> Release:
        """One release.

        Raises:
            UserError: there is none of this version.
        """
        found = self.releases()
        for release in found:
            if release.version == version:
                return release
        raise UserError(
            f"There is no release {version}. There are: {', '.join(r.version for r in found) or 'none'}."
        )

    def champion(self) -> Release | None:
        """The champion, after what a crash left half done was mended; None before the first promotion."""
        with locked(self._lock):
            self._reconcile()
            return next((release for release in self.releases() if release.stage == CHAMPION), None)

    def anchor(self, version: str | None) -> Release | None:
        """The fixed release that non-inferiority is measured against; None if the parameters name none.

        Raises:
            UserError: there is no such release, or its bundle is gone.
        """
        return None if version is None else self._with_packet(version)

    def register(self, commit: str, bundle_folder: Path) -> str:
        """Make a bundle a release: move it to its place, then tag the commit. Again with the same commit: as before.

        Args:
            commit: 40 hexadecimal digits, of a commit that was pushed into the registry's repository.
            bundle_folder: a bundle (`build_bundle`) on the same file system; it is moved.

        Returns:
            The version.

        Raises:
            UserError: the repository lacks the commit, or the bundle is damaged or of another commit.
        """
        with locked(self._lock):
            registered, _ = self._tags()
            for version, known in registered.items():
                if known == commit:
                    return version
            if not re.fullmatch("[0-9a-f]{40}", commit) or not self._has(commit):
                raise UserError(
                    f"{self.repository} has no commit {commit}. Push it there first: git push {self.repository} "
                    "COMMIT:refs/heads/nightly"
                )
            content = verify(bundle_folder)
            if content["commit"] != commit:
                raise UserError(f"{bundle_folder} is of commit {content['commit']}, not of {commit}.")
            last = max((_key(version)[1] for version in registered), default=0)
            version = f"v0.{last + 1}.0"
            place = self.folder / version
            # Without a tag, a folder there is what a crash left of another try.
            shutil.rmtree(place, ignore_errors=True)
            flush_tree(bundle_folder)
            bundle_folder.rename(place)
            flush(self.folder)
            self._register(version, commit)
            return version

    def promote(self, version: str, by: str, reason: str) -> None:
        """Make a release the champion. If it is already, only what a crash left half done is mended.

        Raises:
            UserError: no such release, its bundle is gone or damaged, or `by` or `reason` is empty.
        """
        self._set_champion(version, by, f"promote: {_said(reason)}")

    def rollback(self, by: str, reason: str, to: str | None = None) -> str:
        """Make an earlier champion the champion again.

        Args:
            by: who.
            reason: why.
            to: version; None takes the champion before this one.

        Returns:
            The version that is the champion now.

        Raises:
            UserError: there is no earlier champion, or see `promote`.
        """
        _, assignments = self._tags()
        champion = _champion(assignments)
        target = to or self.before()
        if target is None:
            raise UserError("There is no earlier champion to go back to: see python -m ral.release list.")
        if target not in {item.version for item in assignments if item.stage == CHAMPION}:
            raise UserError(
                f"{target} was never the champion. To make it one: python -m ral.release promote {target}"
            )
        if target != champion:
            self._set_champion(target, by, f"rollback: {_said(reason)}")
        return target

    def before(self) -> str | None:
        """The version that was the champion before this one, rollbacks undone: champions that were left do not count."""
        _, assignments = self._tags()
        line: list[str] = []
        for item in assignments:
            if item.stage == CHAMPION:
                line = line[: line.index(item.version)] if item.version in line else line
                line.append(item.version)
        return line[-2] if len(line) > 1 else None

    def prune(self, keep: int, used: tuple[str, ...] = ()) -> list[str]:
        """Remove the bundles of old releases; their tags stay.

        Args:
            keep: newest bundles that stay whatever they are.
            used: versions that stay, too, such as the anchor. The champion and the one before it always do.

        Returns:
            Versions whose bundle was removed.
        """
        with locked(self._lock):
            self._reconcile()
            releases = [release for release in self.releases() if release.bundle.is_dir()]
            newest = {release.version for release in releases[len(releases) - keep :]} if keep else set()
            stays = newest | {*used, self.before()}
            gone = [r for r in releases if r.stage != CHAMPION and r.version not in stays]
            for release in gone:
                # Renamed first: a crash must not leave half a bundle under its name.
                dead = self.folder / f".{release.version}.pruned"
                release.bundle.rename(dead)
            for dead in self.folder.glob(".*.pruned"):
                shutil.rmtree(dead)
            return [release.version for release in gone]

    def _set_champion(self, version: str, by: str, message: str) -> None:
        release = self._with_packet(version)
        with locked(self._lock):
            _, assignments = self._tags()
            if _champion(assignments) != release.version:
                # git marks the end of a name by these.
                self._assign(CHAMPION, version, _said(re.sub("[<>]", "", by)), message)
            self._reconcile()

    def _with_packet(self, version: str) -> Release:
        release = self.release(version)
        verify(release.bundle)
        return release

    def _reconcile(self) -> None:
        """Bring in line with the newest champion's tag what follows from it: the archived tag, the ledger, the link."""
        _, assignments = self._tags()
        champions = [item for item in assignments if item.stage == CHAMPION]
        for item in champions:
            what, _, reason = item.message.partition(": ")
            if what not in ("promote", "rollback"):  # assigned with gto itself
                what, reason = "promote", item.message
            self.ledger.append(
                what, once="tag", tag=item.tag, version=item.version, by=item.by, reason=reason
            )
        if not champions:
            return
        last = champions[-1]
        left = next((item.version for item in reversed(champions) if item.version != last.version), None)
        archived = any(
            item.stage == ARCHIVED and item.version == left and item.number > last.number
            for item in assignments
        )
        if left and not archived:
            self._assign(ARCHIVED, left, last.by, f"{last.version} is the champion")
        target = f"{self.folder.name}/{last.version}"
        if not self.link.is_symlink() or os.readlink(self.link) != target:
            point(self.link, target)

    def _tags(self) -> tuple[dict[str, str], list[_Assignment]]:
        """What GTO reads from the tags: version -> commit, and the assignments in their order."""
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
            author=by, author_email=EMAIL, force=True,  # a champion may become it again
        )  # fmt: skip

    def _wait_for_next_second(self, stage: str) -> None:
        """GTO orders the tags of a stage by whole seconds: two within one would be in no order for it."""
        form = "--format=%(taggerdate:unix)"
        times = _git("-C", str(self.repository), "tag", "--list", f"{ARTIFACT}#{stage}#*", form).split()
        last = max((int(text) for text in times), default=0)
        if 0 <= time.time() - last < 1:
            time.sleep(last + 1 - time.time())

    def _has(self, commit: str) -> bool:
        command = ["git", "-C", str(self.repository), "cat-file", "-e", f"{commit}^{{commit}}"]
        return subprocess.run(command, capture_output=True).returncode == 0


def _champion(assignments: list[_Assignment]) -> str | None:
    return next((item.version for item in reversed(assignments) if item.stage == CHAMPION), None)


def _key(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _said(text: str) -> str:
    """One line of who or why; it goes into a tag and the ledger."""
    line = " ".join(text.split())
    if not line:
        raise UserError("Say who and why: neither may be empty.")
    return line


def _git(*arguments: str) -> str:
    """What git answers.

    Raises:
        UserError: git is not there, or refuses.
    """
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except OSError as error:
        raise UserError(f"git cannot be started ({error}): the registry needs it.") from None
    except subprocess.CalledProcessError as error:
        raise UserError(f"git {' '.join(arguments)}: {error.stderr.strip()}") from None
    return done.stdout
