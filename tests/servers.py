"""A Prefect server and a worker of a test's own: real processes that can be killed and started again."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

PREFECT = (sys.executable, "-m", "prefect")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Daemon:
    """A process that runs until it is ended; whatever it printed is in `log`."""

    def __init__(self, command: tuple[str, ...], folder: Path, env: dict[str, str], log: Path) -> None:
        self._command, self._folder, self._env, self.log = command, folder, env, log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        with self.log.open("ab") as stream:
            self._process = subprocess.Popen(
                self._command, cwd=self._folder, env=self._env, start_new_session=True, stdin=subprocess.DEVNULL,
                stdout=stream, stderr=stream,
            )  # fmt: skip

    def end(self, how: signal.Signals = signal.SIGTERM, group: bool = True) -> None:
        """End it, with what it started in its group; `group` false sends the signal to its first process alone."""
        if self._process is not None and self._process.poll() is None:
            if group:
                os.killpg(self._process.pid, how)
            else:
                self._process.send_signal(how)
            try:
                self._process.wait(120)
            except subprocess.TimeoutExpired:  # a worker waits for the run that it has started
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._process = None


class Server(Daemon):
    """A Prefect server on a port of its own, with a database in `home`."""

    def __init__(self, folder: Path, home: Path, environment: dict[str, str], **settings: str) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/api"
        self.settings = {"PREFECT_API_URL": self.url, "PREFECT_HOME": str(home)}
        command = (*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port))
        home.mkdir(parents=True, exist_ok=True)
        super().__init__(
            command, folder, environment | {"PREFECT_HOME": str(home)} | settings, home / "server.log"
        )

    def healthy(self) -> bool:
        """Whether it answers."""
        try:
            return httpx.get(f"{self.url}/health", timeout=None).status_code == 200
        except httpx.TransportError:
            return False

    def start_and_wait(self, wait_until: Callable[..., None]) -> None:
        """Start it and wait until it answers."""
        self.start()
        wait_until(self.healthy)

    def ask(self, what: str, **body: Any) -> Any:
        """The server's answer to a filter, such as `flow_runs`."""
        return httpx.post(f"{self.url}/{what}/filter", json=body, timeout=None).json()

    def artifacts(self) -> dict[str, dict[str, Any]]:
        """The latest artifact of each name; the key is the name and the start of the flow run's id."""
        found = httpx.post(f"{self.url}/artifacts/latest/filter", json={}, timeout=None).json()
        return {
            item["key"].removesuffix(f"-{(item['flow_run_id'] or '')[:8]}"): item
            for item in sorted(found, key=lambda item: item["created"])
        }


class Postgres(Daemon):
    """A PostgreSQL server from Debian's packages, on a port and with data of its own."""

    def __init__(self, environment: dict[str, str]) -> None:
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
        if not programs:
            pytest.skip("no PostgreSQL: apt-get install postgresql")
        self._data = Path(tempfile.mkdtemp(prefix="ral-postgres-"))  # not under a folder that is root's alone
        # PostgreSQL refuses to run as root.
        self._as = ("runuser", "-u", "postgres", "--") if os.getuid() == 0 else ()
        if self._as:
            shutil.chown(self._data, "postgres")
        bin_folder = programs[-1].parent
        make = (
            *self._as,
            str(bin_folder / "initdb"),
            "-D",
            str(self._data / "db"),
            "-U",
            "ral",
            "--auth=trust",
        )
        subprocess.run(make, check=True, capture_output=True, cwd=self._data)
        port = free_port()
        self.url = f"postgresql+asyncpg://ral@127.0.0.1:{port}/postgres"
        command = (
            *self._as, str(bin_folder / "postgres"), "-D", str(self._data / "db"), "-p", str(port),
            "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self._data}",
        )  # fmt: skip
        super().__init__(command, self._data, environment, self._data.with_suffix(".log"))

    def remove(self) -> None:
        """End it and remove its data."""
        self.end(signal.SIGINT)
        shutil.rmtree(self._data)
        self.log.unlink()


def worker(folder: Path, environment: dict[str, str], log: Path) -> Daemon:
    """A worker of the pool ral-process; `environment` has the server's settings."""
    command = (*PREFECT, "worker", "start", "--pool", "ral-process", "--name", "test")
    return Daemon(command, folder, environment, log)
