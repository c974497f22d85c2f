"""Logits and tables of a machine that is lent for minutes: packed as runs finish, merged elsewhere."""

import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.study import table
from ral.errors import UserError
from ral.files import atomic_write

# Bytes of an archive, and number of archives.
LIMIT, ARCHIVES = 15 * 2**20, 4
# Bytes of the header and padding of a member, and of the end of an archive.
OVERHEAD = 2048 + tarfile.RECORDSIZE


@dataclass(frozen=True)
class Archive:
    """Archives of logits in a folder, with copies of the tables of `results`.

    The logits of a run are added before its row is written: a row that is there has its logits, wherever the
    writer was killed.
    """

    folder: Path
    results: Path

    def add(self, logits: Path) -> bool:
        """Add the logits of a finished run.

        Returns:
            Whether there was room.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for number in range(ARCHIVES):
            path = self.folder / f"logits-{number}.tar"
            size = path.stat().st_size if path.is_file() else 0
            if size + logits.stat().st_size + OVERHEAD <= LIMIT:
                with atomic_write(path) as draft:
                    if size:
                        shutil.copyfile(path, draft)
                    with tarfile.open(draft, "a" if size else "w") as archive:
                        archive.add(logits, logits.name)
                return True
        return False

    def copy_tables(self) -> None:
        """Copy the tables as they are now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (table.RUNS_FILE, table.SCALES_FILE):
            if (self.results / name).is_file():
                with atomic_write(self.folder / name) as draft:
                    shutil.copyfile(self.results / name, draft)


def merge(folder: Path, state: Path, results: Path) -> tuple[int, int]:
    """Merge what `Archive` wrote: logits into `state`, rows that are not there yet into the tables of `results`.

    Returns:
        Number of rows that were added, and of rows that were left out because their logits are not in the archives.

    Raises:
        UserError: the folder has no runs.csv.
    """
    if not (folder / table.RUNS_FILE).is_file():
        raise UserError(f"{folder} has no {table.RUNS_FILE}: name the folder that --pack wrote.")
    (state / "logits").mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.glob("logits-*.tar")):
        _extract(path, state / "logits")
    rows = table.read_rows(results / table.RUNS_FILE)
    known = {row["run"] for row in rows}
    new = [row for row in table.read_rows(folder / table.RUNS_FILE) if row["run"] not in known]
    complete = [row for row in new if _has_logits(state / "logits" / f"{row['run']}.npz", row["logits"])]
    table.write_rows(results / table.RUNS_FILE, [*rows, *complete])
    for row in table.read_rows(folder / table.SCALES_FILE, table.SCALES):
        table.add_scale(results / table.SCALES_FILE, row)
    return len(complete), len(new) - len(complete)


def _extract(path: Path, target: Path) -> None:
    """Extract an archive as far as it goes."""
    with tarfile.open(path) as archive:
        try:
            for member in archive:
                archive.extract(member, target, filter="data")
        except tarfile.ReadError:  # cut on its way here: the rows say which logits are missing
            return


def _has_logits(path: Path, digest: str) -> bool:
    return path.is_file() and table.logits_hash(path) == digest
