"""The run's metric files: one row per epoch and step, without duplicates after a resumed epoch."""

from pathlib import Path

import pandas as pd

from ral.training.metric_logger import MetricLogger
from ral.training.state import EpochRecord


def record(epoch: int) -> EpochRecord:
    return EpochRecord(epoch, "network", 0.001, 0.25, 0, val_macro_ap=0.5)


def test_a_repeated_epoch_replaces_itself(tmp_path: Path) -> None:
    logger = MetricLogger(tmp_path, tensorboard=False)
    logger.epoch(record(1), 100, 2.0, [0.5, 0.25], 0)
    logger.epoch(record(2), 100, 2.0, [0.2, 0.1], 2)
    MetricLogger(tmp_path, tensorboard=False).epoch(record(2), 50, 2.0, [0.2, 0.125], 2)
    speed, steps = (pd.read_csv(tmp_path / name) for name in ("speed.csv", "steps.csv"))
    assert speed["images_per_second"].tolist() == [50.0, 25.0]
    assert steps["loss"].tolist() == [0.5, 0.25, 0.2, 0.125]
    assert steps["step"].tolist() == [1, 2, 1, 2]


def test_tensorboard_gets_the_losses(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    MetricLogger(tmp_path, tensorboard=True).epoch(record(1), 100, 2.0, [0.5, 0.25], 10)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(11, 0.5), (12, 0.25)]
    assert [e.value for e in events.Scalars("epoch/val_macro_ap")] == [0.5]
