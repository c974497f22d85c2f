"""A complete dataset.json for prepared data that a test writes itself."""

from typing import Any

from ral.data.dataset_info import DatasetInfo, SameImageCounts, Shard
from ral.preparation import ImageProfile, Preparation


def dataset_info(size: int, shards: list[Shard], findings: list[str], **changes: Any) -> DatasetInfo:
    """Counts and statistics are made up, unless they are among the changes."""
    content: dict[str, Any] = {
        "source": "nih", "phantom": False, "images": 1, "patients": 1, "rows": 1, "left_out": {}, "inverted": 0,
        "notes": {}, "findings": findings, "size": size, "pixel_mean": 127.5, "pixel_deviation": 74.0,
        "same_image": SameImageCounts(images=0, patients=0, apart=0, examples=[], joined=False),
        "preparation": Preparation(size=size, fit="stretch", range="own"),
        "profile": ImageProfile(views={}, image_mean=[0.0, 255.0], image_deviation=[0.0, 128.0]),
        "split": {}, "shards": shards,
    }  # fmt: skip
    return DatasetInfo(**(content | changes))
