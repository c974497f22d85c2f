"""Finds images listed under two patients, by the bytes of the file or by the prepared pixels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ral.data.privacy import NO_PSEUDONYMS, Pseudonymizer
from ral.data.tables.partitions import Partition
from ral.data.tables.spill import ImageIdIndex

# Examples reported.
EXAMPLES = 5


def same_content(
    partitions: Sequence[Partition], image: str, patient: str, images: pd.DataFrame
) -> list["pd.Series[str]"]:
    """For each row whose image file has the same bytes as another patient's, describe that file; null for other rows.

    Args:
        partitions: all partitions of a table.
        image: column of the image ids.
        patient: column of the patient ids.
        images: image_id and hash of each image file.

    Returns:
        A series for each partition, in the order of its rows.
    """
    suspects = images[images["hash"].duplicated(keep=False)].reset_index(drop=True)
    index = ImageIdIndex(suspects["image_id"])
    sizes, matches = [], []
    for number, part in enumerate(partitions):
        rows = part.read(list(dict.fromkeys((image, patient))))
        sizes.append(len(rows))
        suspect = index.find(rows[image]) if len(suspects) else np.full(len(rows), -1)
        matching = np.flatnonzero(suspect >= 0)
        matches.append(
            pd.DataFrame(
                {
                    "part": number,
                    "position": matching,
                    "order": rows.index[matching],
                    "image_id": rows[image].to_numpy(object)[matching],
                    "patient_id": rows[patient].to_numpy(object)[matching],
                    "content": suspects["hash"].to_numpy(object)[suspect[matching]],
                }
            )
        )
    rows = pd.concat(matches, ignore_index=True).sort_values("order", kind="stable")
    shared = shared_images(rows)
    texts = [np.full(size, None, object) for size in sizes]
    others = shared.loc[partners(shared)]
    descriptions = "the same bytes as " + others["image_id"] + " of patient " + others["patient_id"]
    rows_of_parts = zip(shared["part"].tolist(), shared["position"].tolist(), descriptions, strict=True)
    for number, position, text in rows_of_parts:
        texts[number][position] = text
    return [pd.Series(values, dtype="str") for values in texts]


def shared_images(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows whose `content` occurs under more than one `patient_id`."""
    repeated = rows[rows["content"].duplicated(keep=False)]
    return repeated[repeated.groupby("content")["patient_id"].transform("nunique") > 1]


def partners(shared: pd.DataFrame) -> list[int]:
    """For each row of `shared_images`, the index of the first row with the same content but another patient."""
    first = shared.drop_duplicates("content").set_index("content")["patient_id"]
    of_first = shared["patient_id"] == shared["content"].map(first)
    first_of_first, first_of_others = (
        part.drop_duplicates("content").reset_index().set_index("content")["index"]
        for part in (shared[of_first].rename_axis("index"), shared[~of_first].rename_axis("index"))
    )
    content = shared["content"]
    return content.map(first_of_others).where(of_first, content.map(first_of_first)).astype(int).tolist()


def same_images(rows: pd.DataFrame, pixels: "pd.Series[str]") -> "SameImages":
    """Find images of several patients whose files, or whose prepared pixels, are identical.

    Identical files do not always give identical pixels: one of the images may be inverted.

    Args:
        rows: image_id, patient_id and file hash of every image, in the order of the pixels.
        pixels: result of `ral.data.images.shards.same_pixels`, by position in `rows`; empty before images are packed.
    """
    repeated = rows["hash"].duplicated(keep=False).to_numpy().copy()
    repeated[pixels.index] = True
    candidates = rows.iloc[np.flatnonzero(repeated)].reset_index(drop=True)
    digests = pixels.reindex(np.flatnonzero(repeated))
    digests = digests.where(digests.notna(), "file " + candidates["hash"].set_axis(digests.index))
    content = components(candidates["hash"], digests)
    return SameImages(shared_images(candidates.drop(columns="hash").assign(content=content)))


def components(first: pd.Series, second: pd.Series) -> np.ndarray:
    """Connected component of each pair, where pairs with equal `first` or equal `second` are linked, int32 [pairs]."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first_codes, first_values = pd.factorize(first.to_numpy(object))
    second_codes, second_values = pd.factorize(second.to_numpy(object))
    size = len(first_values) + len(second_values)
    links = coo_array(
        (np.ones(len(first_codes)), (first_codes, second_codes + len(first_values))), shape=(size, size)
    )
    return np.asarray(connected_components(links, directed=False)[1])[first_codes]


@dataclass(frozen=True)
class SameImages:
    """Images listed under more than one patient.

    Attributes:
        rows: image_id, patient_id and content of each such row.
    """

    rows: pd.DataFrame

    @property
    def images(self) -> int:
        """Number of distinct images."""
        return int(self.rows["content"].nunique())

    @property
    def patients(self) -> int:
        """Number of patients who have them."""
        return int(self.rows["patient_id"].nunique())

    def apart(self, split: "pd.Series[str]") -> int:
        """Number of images whose patients are in more than one split.

        Args:
            split: split by patient id.
        """
        splits = self.rows["patient_id"].map(split).groupby(self.rows["content"]).nunique()
        return int((splits > 1).sum())

    def examples(self, pseudonymizer: Pseudonymizer = NO_PSEUDONYMS) -> list[list[str]]:
        """The first few images, each as a list of `IMAGE (patient ID)`."""
        contents = self.rows["content"].unique()[:EXAMPLES]
        rows = pseudonymizer.table(self.rows[self.rows["content"].isin(contents)])
        named = rows["image_id"] + " (patient " + rows["patient_id"] + ")"
        return [named[rows["content"] == content].head(EXAMPLES).tolist() for content in contents]

    def groups(self, first: pd.Index | None = None) -> "pd.Series[str]":
        """Map each patient of these rows to one representative, so that all patients who share images stay together.

        Args:
            first: ids of patients who already have a split; they are preferred as representatives.

        Returns:
            Representative by patient id: the smallest id among connected patients, taken from `first` if any is there.
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
