"""Shards give back what was put in, mapped and not copied."""

from pathlib import Path

import numpy as np

from ral.data.images.shards import open_shard, write_shard


def test_shard_round_trip_is_mapped_not_copied(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    ids = [f"{n}.png" for n in range(5)]
    write_shard(tmp_path / "a.arrow", ids, images)
    read_ids, read = open_shard(tmp_path / "a.arrow", 8)
    assert read_ids.to_pylist() == ids
    assert (read == images).all()
    assert not read.flags.writeable
    assert not read.flags.owndata
    write_shard(tmp_path / "b.arrow", ids, images)
    assert (tmp_path / "a.arrow").read_bytes() == (tmp_path / "b.arrow").read_bytes()
