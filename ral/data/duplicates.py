"""One image under two patients: by the bytes of its file, or by its pixels once prepared."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ral.data.partition import Partition
from ral.data.privacy import pseudonymised
from ral.data.shards import open_shard
from ral.data.table import Places

# Examples given of each kind of duplicate.
EXAMPLES = 5


def same_content(
    partitions: Sequence[Partition], image: str, patient: str, films: pd.DataFrame
) -> list["pd.Series[str]"]:
    """For each row whose image file has the same bytes as one of another patient, which one that is; null for others.

    Args:
        partitions: all of a table.
        image: column of the image ids.
        patient: column of the patient ids.
        films: image_id and hash of each image file.

    Returns:
        A series for each partition, in the order of its rows.
    """
    suspects = films[films["hash"].duplicated(keep=False)].reset_index(drop=True)
    places = Places(suspects["image_id"])
    sizes, found = [], []
    for number, part in enumerate(partitions):
        rows = part.read(list(dict.fromkeys((image, patient))))
        sizes.append(len(rows))
        at = places.find(rows[image]) if len(suspects) else np.full(len(rows), -1)
        here = np.flatnonzero(at >= 0)
        found.append(
            pd.DataFrame(
                {
                    "part": number,
                    "position": here,
                    "order": rows.index[here],
                    "image_id": rows[image].to_numpy(object)[here],
                    "patient_id": rows[patient].to_numpy(object)[here],
                    "content": suspects["hash"].to_numpy(object)[at[here]],
                }
            )
        )
    rows = pd.concat(found, ignore_index=True).sort_values("order", kind="stable")
    shared = shared_images(rows)
    texts = [np.full(size, None, object) for size in sizes]
    others = shared.loc[partners(shared)]
    told = "the same bytes as " + others["image_id"] + " of patient " + others["patient_id"]
    for number, at, text in zip(shared["part"].tolist(), shared["position"].tolist(), told, strict=True):
        texts[number][at] = text
    return [pd.Series(values, dtype="str") for values in texts]


def shared_images(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows whose `content` stands under more than one `patient_id`."""
    repeated = rows[rows["content"].duplicated(keep=False)]
    return repeated[repeated.groupby("content")["patient_id"].transform("nunique") > 1]


def partners(shared: pd.DataFrame) -> list[int]:
    """For each row of `shared_images` the index of the first row of the same content that another patient has."""
    chosen: dict[int, int] = {}
    for _, group in shared.groupby("content", sort=False):
        rows, patients = group.index.tolist(), group["patient_id"].tolist()
        second = next(row for row, patient in zip(rows, patients, strict=True) if patient != patients[0])
        for row, patient in zip(rows, patients, strict=True):
            chosen[row] = second if patient == patients[0] else rows[0]
    return [chosen[row] for row in shared.index.tolist()]


def same_pixels(shards: Sequence[Path], size: int, sums: np.ndarray) -> pd.Series:
    """Of packed images whose pixels another one has too, a name of these pixels.

    Args:
        shards: the shards in their order.
        size: height and width of an image.
        sums: int64 [images, 2], sum of an image's pixels and of their squares; only where both are equal are the pixels
            themselves read.

    Returns:
        SHA-256 by number of the image.
    """
    suspects = np.flatnonzero(pd.DataFrame(sums).duplicated(keep=False).to_numpy())
    digests: dict[int, str] = {}
    first = 0
    for path in shards if len(suspects) else ():
        _, images = open_shard(path, size)
        here = suspects[(suspects >= first) & (suspects < first + len(images))]
        digests |= {int(row): hashlib.sha256(images[row - first].tobytes()).hexdigest() for row in here}
        first += len(images)
    names = pd.Series(digests, dtype="str")
    return names[names.duplicated(keep=False)]


@dataclass(frozen=True)
class SameImages:
    """Images that stand under more than one patient.

    Attributes:
        rows: image_id, patient_id and content of each of these rows.
    """

    rows: pd.DataFrame

    @property
    def images(self) -> int:
        """How many different images there are."""
        return int(self.rows["content"].nunique())

    @property
    def patients(self) -> int:
        """How many patients have them."""
        return int(self.rows["patient_id"].nunique())

    def examples(self, salt: bytes | None = None) -> list[list[str]]:
        """The first few, each as `IMAGE (patient ID)` of its rows; by pseudonyms where a salt is given."""
        some = self.rows["content"].unique()[:EXAMPLES]
        rows = self.rows[self.rows["content"].isin(some)]
        rows = pseudonymised(rows, salt) if salt else rows
        named = rows["image_id"] + " (patient " + rows["patient_id"] + ")"
        return [named[rows["content"] == content].head(EXAMPLES).tolist() for content in some]

    def groups(self, first: pd.Index | None = None) -> "pd.Series[str]":
        """The patient who stands for each patient of these rows, so that all who share an image stay together.

        Args:
            first: ids of patients who have a split already; one of them stands for the others.

        Returns:
            Patient id by patient id: the least of those that are connected by images, and are in `first` if any is.
        """
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        person, patients = pd.factorize(self.rows["patient_id"], sort=True)
        content, contents = pd.factorize(self.rows["content"])
        size = len(patients) + len(contents)
        links = coo_array((np.ones(len(person)), (person, content + len(patients))), shape=(size, size))
        _, component = connected_components(links, directed=False)
        members = pd.DataFrame({"patient": patients, "group": component[: len(patients)]})
        members["new"] = ~members["patient"].isin(first) if first is not None else False
        ordered = members.sort_values(["new", "patient"], kind="stable")
        leader = ordered.groupby("group")["patient"].first()
        return pd.Series(members["group"].map(leader).to_numpy(object), index=members["patient"], dtype="str")
