"""The run's metric files: one row per epoch and step, without duplicates after a resumed epoch."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pandas as pd
import pytest

from ral.errors import UserError
from ral.training.metric_logger import DVCLive, MetricLogger, TensorBoard
from ral.training.state import EpochRecord


def record(epoch: int) -> EpochRecord:
    return EpochRecord(epoch, "network", 0.001, 0.25, 0, val_macro_ap=0.5)


def test_a_repeated_epoch_replaces_itself(tmp_path: Path) -> None:
    logger = MetricLogger(tmp_path)
    logger.epoch(record(1), 100, 2.0, [0.5, 0.25], 0)
    logger.epoch(record(2), 100, 2.0, [0.2, 0.1], 2)
    MetricLogger(tmp_path).epoch(record(2), 50, 2.0, [0.2, 0.125], 2)
    speed, steps = (pd.read_csv(tmp_path / name) for name in ("speed.csv", "steps.csv"))
    assert speed["images_per_second"].tolist() == [50.0, 25.0]
    assert steps["loss"].tolist() == [0.5, 0.25, 0.2, 0.125]
    assert steps["step"].tolist() == [1, 2, 1, 2]


def test_tensorboard_gets_the_losses(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    MetricLogger(tmp_path, [TensorBoard(tmp_path / "tensorboard")]).epoch(
        record(1), 100, 2.0, [0.5, 0.25], 10
    )
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(11, 0.5), (12, 0.25)]
    assert [e.value for e in events.Scalars("epoch/val_macro_ap")] == [0.5]


@pytest.fixture
def studio(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Requests to a DVC Studio for which the user has a token."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            requests.append(self.path)
            self.send_response(200)
            self.end_headers()

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("DVC_STUDIO_TOKEN", "secret")
    monkeypatch.setenv("DVC_STUDIO_REPO_URL", "https://example.org/repository")
    monkeypatch.setenv("DVC_STUDIO_URL", f"http://127.0.0.1:{server.server_port}")
    yield requests
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder without a repository, and an environment that is restored afterwards."""
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_NO_ANALYTICS", "DVC_STUDIO_OFFLINE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def table(folder: Path, name: str) -> list[tuple[int, float]]:
    """Steps and values of a metric of DVCLive."""
    rows = pd.read_csv(folder / "plots/metrics" / f"{name}.tsv", sep="\t")
    return list(rows.itertuples(index=False, name=None))


@pytest.mark.usefixtures("outside")
def test_dvclive_gets_the_losses_and_a_resumed_run_continues(tmp_path: Path, studio: list[str]) -> None:
    pytest.importorskip("dvclive", reason="the extra dvclive is not installed")
    folder = tmp_path / "dvclive"
    first = MetricLogger(tmp_path, [DVCLive(folder)])
    first.epoch(record(1), 100, 2.0, [0.5, 0.25], 0)
    first.epoch(record(2), 100, 2.0, [0.2, 0.1], 2)
    # The second epoch was interrupted before its checkpoint: the resumed run repeats it.
    resumed = MetricLogger(tmp_path, [DVCLive(folder)])
    resumed.epoch(record(2), 50, 2.0, [0.2, 0.125], 2)
    resumed.epoch(record(3), 100, 2.0, [0.0625], 4)
    assert table(folder, "train/loss") == [(1, 0.5), (2, 0.25), (3, 0.2), (4, 0.125), (5, 0.0625)]
    assert table(folder, "epoch/val_macro_ap") == [(1, 0.5), (2, 0.5), (3, 0.5)]
    last = json.loads((folder / "metrics.json").read_text())
    assert (last["train"]["loss"], last["epoch"]["val_macro_ap"], last["step"]) == (0.0625, 0.5, 3)
    assert not list(tmp_path.rglob("dvc.yaml"))
    assert studio == []


@pytest.mark.usefixtures("outside")
def test_dvclive_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dvclive", None)
    with pytest.raises(
        UserError, match=r"training\.dvclive needs the dvclive package: pip install .*\[dvclive\]"
    ):
        DVCLive(tmp_path / "dvclive")
