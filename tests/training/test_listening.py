"""Training on one machine listens on loopback only, because its communication has no authentication."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from trainings import RANK, params, rank, train, write_spec

from ral.config.environment import TrainingTarget
from ral.errors import UserError
from ral.launch import launch


def listening() -> dict[int, set[str]]:
    """Addresses on which the training processes started by this one listen, by process id."""
    addresses = {}
    for child in psutil.Process().children(recursive=True):
        try:
            if "ral.training" in child.cmdline():
                sockets = child.net_connections("inet")
                addresses[child.pid] = {s.laddr.ip for s in sockets if s.status == psutil.CONN_LISTEN}
        except psutil.NoSuchProcess:
            continue
    return addresses


def test_training_on_one_machine_listens_on_loopback_only(prepared: Path, tmp_path: Path) -> None:
    seen: dict[int, set[str]] = {}
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train, prepared, tmp_path / "out", 2, command=RANK, zero_stage=1)
        while not training.done():
            for process, addresses in listening().items():
                seen[process] = seen.get(process, set()) | addresses
            time.sleep(0.2)
        training.result()
    # A fork of a rank on its way to another program listens nowhere.
    assert [addresses for addresses in seen.values() if addresses] == [{"127.0.0.1"}] * 2


def test_a_port_that_is_taken_is_named(prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with socket.create_server(("127.0.0.1", 0)) as occupant:
        port = occupant.getsockname()[1]
        spec = write_spec(prepared, out, params())
        with pytest.raises(UserError, match=rf"port {port} .*training\.port") as error:
            launch(spec, TrainingTarget(processes=2, port=port), out, rank())
    assert error.value.retry
