"""One image under two patients: by the bytes of its file, or by its pixels once prepared."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ral.data.privacy import pseudonymised
from ral.data.tables.partitions import Partition
from ral.data.tables.spill import ImageIdIndex

# Examples given of each kind of duplicate.
EXAMPLES = 5


def same_content(
    partitions: Sequence[Partition], image: str, patient: str, images: pd.DataFrame
) -> list["pd.Series[str]"]:
    """For each row whose image file has the same bytes as one of another patient, which one that is; null for others.

    Args:
        partitions: all of a table.
        image: column of the image ids.
        patient: column of the patient ids.
        images: image_id and hash of each image file.

    Returns:
        A series for each partition, in the order of its rows.
    """
    suspects = images[images["hash"].duplicated(keep=False)].reset_index(drop=True)
    places = ImageIdIndex(suspects["image_id"])
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
    first = shared.drop_duplicates("content").set_index("content")["patient_id"]
    of_first = shared["patient_id"] == shared["content"].map(first)
    begins, others = (
        part.drop_duplicates("content").reset_index().set_index("content")["index"]
        for part in (shared[of_first].rename_axis("index"), shared[~of_first].rename_axis("index"))
    )
    content = shared["content"]
    return content.map(others).where(of_first, content.map(begins)).astype(int).tolist()


def same_images(rows: pd.DataFrame, pixels: "pd.Series[str]") -> "SameImages":
    """Images of several patients whose files have equal bytes, or that are equal pixel by pixel once prepared.

    (Equal bytes do not always become equal pixels: one of the images may be inverted.)

    Args:
        rows: image_id, patient_id and hash of the file, of every image, in the order of the pixels.
        pixels: of `ral.data.images.shards.same_pixels`, by position in `rows`; empty before there are any.
    """
    repeated = rows["hash"].duplicated(keep=False).to_numpy().copy()
    repeated[pixels.index] = True
    some = rows.iloc[np.flatnonzero(repeated)].reset_index(drop=True)
    found = pixels.reindex(np.flatnonzero(repeated))
    named = found.where(found.notna(), "file " + some["hash"].set_axis(found.index))
    content = components(some["hash"], named)
    return SameImages(shared_images(some.drop(columns="hash").assign(content=content)))


def components(first: pd.Series, second: pd.Series) -> np.ndarray:
    """Number of the component of each pair where equal values of `first`, and of `second`, belong together, int32 [pairs]."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    one, ones = pd.factorize(first.to_numpy(object))
    two, twos = pd.factorize(second.to_numpy(object))
    size = len(ones) + len(twos)
    links = coo_array((np.ones(len(one)), (one, two + len(ones))), shape=(size, size))
    return np.asarray(connected_components(links, directed=False)[1])[one]


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

    def apart(self, split: "pd.Series[str]", salt: bytes | None = None) -> int:
        """How many of the images have patients in more than one split.

        Args:
            split: by patient id; by pseudonym where a salt is given.
            salt: of the pseudonyms.
        """
        rows = pseudonymised(self.rows, salt) if salt else self.rows
        return int((rows["patient_id"].map(split).groupby(rows["content"]).nunique() > 1).sum())

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
        pairs = self.rows[["patient_id", "content"]]
        members = pd.DataFrame(
            {"patient": pairs["patient_id"], "group": components(*(pairs[name] for name in pairs))}
        )
        members = members.drop_duplicates("patient")
        members["new"] = ~members["patient"].isin(first) if first is not None else False
        ordered = members.sort_values(["new", "patient"], kind="stable")
        leader = ordered.groupby("group")["patient"].first()
        return pd.Series(members["group"].map(leader).to_numpy(object), index=members["patient"], dtype="str")
