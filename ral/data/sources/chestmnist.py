"""ChestMNIST (Yang et al., 2023): NIH ChestX-ray14 at 28, 64, 128 or 224 pixels in one file of the package medmnist.

`data.root` has one of chestmnist.npz, chestmnist_64.npz, chestmnist_128.npz, chestmnist_224.npz; images are read
from the file directly.
"""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from ral.data.file_hash import FileHash
from ral.data.images.file_hashes import FileHashCache
from ral.data.images.locate import content_hash
from ral.data.images.npz import array_shape, read_array
from ral.data.sources.base import ColumnLabels, Layout, Source
from ral.data.sources.text import find_table
from ral.errors import UserError
from ral.files import sha256
from ral.labels import NIH_FINDINGS

FILES = ("chestmnist.npz", "chestmnist_64.npz", "chestmnist_128.npz", "chestmnist_224.npz")
SPLITS = ("train", "val", "test")
# The columns of the label arrays.
ORDER = (
    "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
    "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
)  # fmt: skip


class Reader(Source):
    """There are no patient ids, sex, age or view: each image counts as one patient, and validation warns about it."""

    layout = Layout(
        image="image_id",
        patient="image_id",
        split="official",
        labels=ColumnLabels({finding: finding for finding in NIH_FINDINGS}),
        patients_known=False,
    )

    def tables(self) -> list[Path]:
        return [find_table(self.root, FILES)]

    def read(self) -> pd.DataFrame:
        (path,) = self.tables()
        parts = []
        for split in SPLITS:
            labels = read_array(path, f"{split}_labels.npy")
            if labels.ndim != 2 or labels.shape[1] != len(ORDER):
                raise UserError(
                    f"{path}: {split}_labels has shape {labels.shape}, not [images, {len(ORDER)}]."
                )
            part = pd.DataFrame(labels.astype("U2"), columns=ORDER, dtype="str")
            image_ids = [f"{split}_{number:06d}" for number in range(len(part))]
            parts.append(part.assign(image_id=image_ids, official=split, row=range(len(part))))
        return pd.concat(parts, ignore_index=True)

    @property
    def image_columns(self) -> list[str]:
        return ["image_id", "official", "row"]

    def images(
        self, raw: pd.DataFrame, progress: Callable[[int], None], hash_cache: FileHashCache | None = None
    ) -> tuple[pd.DataFrame, dict[str, FileHash]]:
        """Locate images in the arrays; the hash of an image covers the file hash and its position, not its pixels."""
        (path,) = self.tables()
        sizes = {}
        for split in SPLITS:
            shape, _ = array_shape(path, f"{split}_images.npy")
            if shape[0] != (raw["official"] == split).sum():
                raise UserError(
                    f"{path}: {split} has {shape[0]} images but another number of labels. Download it again."
                )
            sizes[split] = shape[1] * shape[2]
        size, digest = path.stat().st_size, sha256(path)
        progress(size)
        members = raw["official"] + "_images.npy[" + raw["row"].astype("str") + "]"
        images = pd.DataFrame(
            {
                "image_id": raw["image_id"],
                "path": path.name,
                "member": members,
                "offset": -1,
                "bytes": raw["official"].map(sizes),
                "hash": [content_hash(f"{digest}:{member}".encode()) for member in members],
            }
        )
        return images, {path.name: FileHash(bytes=size, sha256=digest)}

    def image_bytes(self, raw: pd.DataFrame) -> int:
        return self.tables()[0].stat().st_size
