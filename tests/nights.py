"""What a test of nights needs: a hospital whose data grows, a server, a worker, and a look at how each night ended."""

import csv
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
from conftest import copy_project, set_params
from servers import PREFECT, Server, worker

from ral.config.data import PhantomConfig
from ral.phantom.archive import write_phantom

TABLE = "Data_Entry_2017.csv"

# Nights that a test can afford, on data in which each finding is frequent enough to be estimated.
PARAMS = {
    "phantom": {"images": 200, "size": 48},
    "split": {"method": "hash", "val": 0.2, "test": 0.35},
    "preprocess": {"size": 32},
    "train": {"epochs": 1, "batch_size": 32, "threads": 1, "learning_rate": 1e-4},
    "explain": {"show_images": False, "geometry_images": 100, "threads": 1},
    "evaluate": {"replicates": 200, "min_positives": 1, "tail": 0.06},
    # So few patients have wide intervals; floors that no small sample could keep would hold every night.
    "gate": {"first_auroc": 0.4, "tail_floor": 0.5, "subgroup_floor": 0.5, "calibration_cap": 0.3},
}


class Hospital:
    """A folder in NIH's layout to which images are added; `drawn` holds all that there will ever be."""

    def __init__(self, folder: Path, images: int) -> None:
        self.drawn, self.folder = folder / "drawn", folder / "delivered"
        self.drawn.mkdir(parents=True)
        self.folder.mkdir()
        write_phantom(self.drawn, PhantomConfig(images=images, size=48, floor=0.05, seed=3))
        with (self.drawn / TABLE).open(encoding="utf-8", newline="") as stream:
            self.header, *self.rows = list(csv.reader(stream))
        self.patients = list(dict.fromkeys(row[3] for row in self.rows))
        self.archives = 0

    def deliver(self, share: float, change: Callable[[list[str]], list[str]] = list) -> None:
        """Have the images of the first `share` of the patients, in a further archive what was not there;
        `change` edits rows.
        """
        kept = set(self.patients[: round(share * len(self.patients))])
        rows = [row for row in self.rows if row[3] in kept]
        there = {name for path in self.folder.glob("*.tar.gz") for name in members(path)}
        wanted = {f"images/{row[0]}" for row in rows} - there
        if wanted:
            self.archives += 1
            self._add_archive(self.folder / f"images_{self.archives:03}.tar.gz", wanted)
        self._write_table([change(list(row)) for row in rows])
        for name in ("train_val_list.txt", "test_list.txt"):
            lines = (self.drawn / name).read_text().split()
            ids = {row[0] for row in rows}
            (self.folder / name).write_text("".join(f"{line}\n" for line in lines if line in ids))

    def _add_archive(self, path: Path, wanted: set[str]) -> None:
        with tarfile.open(self.drawn / "images_001.tar.gz") as old, tarfile.open(path, "w:gz") as new:
            for member in old:
                if member.name in wanted:
                    content = old.extractfile(member)
                    assert content is not None
                    new.addfile(member, io.BytesIO(content.read()))

    def _write_table(self, rows: Iterable[list[str]]) -> None:
        with (self.folder / TABLE).open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(self.header)
            writer.writerows(rows)


def members(path: Path) -> list[str]:
    """Names in an archive."""
    with tarfile.open(path) as archive:
        return archive.getnames()


class Clinic:
    """A project, its state_dir, a Prefect server and a worker; nights are run through the deployment."""

    def __init__(
        self,
        folder: Path,
        environment: dict[str, str],
        run: Callable[..., subprocess.CompletedProcess[str]],
        wait_until: Callable[..., None],
        params: dict[str, Any] | None = None,
        database: str | None = None,
        images: int = 2400,
        **variables: str,
    ) -> None:
        self._run, self.wait_until = run, wait_until
        self.hospital = Hospital(folder / "hospital", images)
        self.project = copy_project(folder / "project")
        set_params(self.project, PARAMS | (params or {}))
        self.git("commit", "-qam", "parameters of the nights")
        self.state, self.upstream = folder / "state", folder / "upstream.git"
        run("git", "init", "-q", "--bare", str(self.upstream), cwd=folder)
        self.server = Server(
            self.project, folder / "prefect", environment,
            PREFECT_SERVER_CONCURRENCY_INITIAL_DEPLOYMENT_LEASE_DURATION="30",
            **({"PREFECT_API_DATABASE_CONNECTION_URL": database} if database else {}),
        )  # fmt: skip
        self.env = (
            environment
            | self.server.settings
            | {
                "RAL_STATE_DIR": str(self.state),
                "RAL_DATA_ROOT": str(self.hospital.folder),
                "PWD": str(self.project),
            }
            | {"RAL_FLOWS_RETRY_SECONDS": "1", "RAL_FLOWS_PUSH_GIT": str(folder / "upstream.git")}
            | variables
        )
        self.worker = worker(self.project, self.env, folder / "worker.log")

    def open(self) -> None:
        """Start server and worker, and deploy."""
        self.server.start_and_wait(self.wait_until)
        self.prefect("work-pool", "create", "ral-process", "--type", "process")
        self.prefect("deploy", "-n", "nightly", "--no-prompt")
        self.prefect("deployment", "schedule", "clear", "nightly/nightly", "-y")
        self.worker.start()

    def close(self) -> None:
        """End both."""
        self.worker.end()
        self.server.end()

    def git(self, *arguments: str) -> str:
        """What git prints in the project."""
        command = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org", *arguments]
        return self._run(*command, cwd=self.project).stdout.strip()

    def prefect(self, *arguments: str, code: int | None = 0) -> str:
        """What a prefect command prints."""
        return self._run(*PREFECT, *arguments, cwd=self.project, code=code, **self.env).stdout

    def release(self, *arguments: str, code: int | None = 0) -> str:
        """What `python -m ral.release` prints."""
        return self._run(
            "python", "-m", "ral.release", *arguments, cwd=self.project, code=code, **self.env
        ).stdout

    def start_night(self, **changes: Any) -> str:
        """Ask for a night now; id of its flow run."""
        given = json.dumps({key.replace("__", "."): value for key, value in changes.items()})
        known = {item["id"] for item in self.server.ask("flow_runs")}
        self.prefect("deployment", "run", "nightly/nightly", "--param", f"changes={given}")
        (new,) = {item["id"] for item in self.server.ask("flow_runs")} - known
        return str(new)

    def state_of(self, flow_run: str) -> dict[str, Any]:
        """State of a flow run: type, name, message."""
        (found,) = self.server.ask("flow_runs", flow_runs={"id": {"any_": [flow_run]}})
        return dict(found["state"])

    def wait_for(self, flow_run: str, *types: str) -> dict[str, Any]:
        """Wait until a flow run has ended, or is in one of the states `types`."""
        ends = types or ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        self.wait_until(lambda: self.state_of(flow_run)["type"] in ends, every=2.0)
        return self.state_of(flow_run)

    def night(self, **changes: Any) -> dict[str, Any]:
        """Run a night to its end; its state."""
        return self.wait_for(self.start_night(**changes))

    def wait_for_process(self, words: str) -> psutil.Process:
        """Wait until a process of a night has `words` in its command line."""
        found: list[psutil.Process] = []

        def there() -> bool:
            found[:] = [p for p in self.processes() if words in " ".join(p.info["cmdline"] or [])]
            return bool(found)

        self.wait_until(there)
        return found[0]

    def processes(self) -> list[psutil.Process]:
        """Processes of the stages: those that work in the workspaces."""
        inside = str(self.state / "workspaces")
        return [
            process
            for process in psutil.process_iter(["cmdline", "cwd", "status"])
            if (process.info["cwd"] or "").startswith(inside)
            and process.info["status"] != psutil.STATUS_ZOMBIE
        ]

    def lines(self, flow_run: str) -> str:
        """What a night has logged."""
        found: list[str] = []
        while True:
            part = self.server.ask(
                "logs",
                logs={"flow_run_id": {"any_": [flow_run]}},
                limit=200,
                offset=len(found),
                sort="TIMESTAMP_ASC",
            )
            found += [line["message"] for line in part]
            if len(part) < 200:
                return "\n".join(found)

    def ledger(self) -> list[dict[str, Any]]:
        """The ledger's lines."""
        path = self.state / "ledger.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def champion(self) -> str | None:
        """Version of the champion, by the link that users read."""
        link = self.state / "champion"
        return os.readlink(link).rsplit("/", 1)[-1] if link.is_symlink() else None

    def tidy(self) -> None:
        """Assert that no process is left, the ledger is whole, and the caller's checkout is as it was."""
        self.wait_until(lambda: not self.processes())
        if (self.state / "ledger.jsonl").exists():
            self.release("ledger")
        assert self.git("status", "--short") == ""
        workspace = self.state / "workspaces/nightly"
        drafts = [str(path) for path in workspace.rglob("*.draft") if ".git" not in path.parts]
        assert not drafts
