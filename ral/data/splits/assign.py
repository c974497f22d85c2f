"""Assigns every included image its split, given the method, the accepted split, and patients who share images."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from ral.config.data import SplitConfig
from ral.data.dataset_info import SameImageCounts
from ral.data.privacy import Pseudonymizer
from ral.data.sources.base import Source
from ral.data.splits.methods import (
    check_split,
    keep_old_patients,
    split_by_hash,
    split_official,
    split_stratified,
)
from ral.data.splits.withheld import COLUMNS
from ral.data.tables.duplicates import SameImages, same_images
from ral.errors import UserError

# Used before images are packed, when only the files can be compared.
NO_PIXELS = pd.Series(dtype="str", index=pd.Index([], dtype="int64"))


@dataclass(frozen=True)
class Splitter:
    """Assigns the split of a data set.

    Attributes:
        source: provides the official split.
        images: rows of `ral.data.images.locate.list_images`.
        findings: the label columns.
        config: the parameters.
        pseudonymizer: makes the ids of the accepted split from those of the table.
        accepted: the accepted split by patient, if there is one.
        withheld: rows of the excluded patients (`ral.data.splits.withheld`); they get no split, but move nobody else.
    """

    source: Source
    images: pd.DataFrame
    findings: Sequence[str]
    config: SplitConfig
    pseudonymizer: Pseudonymizer
    accepted: pd.Series | None
    withheld: pd.DataFrame

    def same_images(self, included: pd.DataFrame, pixels: "pd.Series[str]" = NO_PIXELS) -> SameImages:
        """Find images of several patients among the included rows, by files and `pixels`
        (`ral.data.images.shards.same_pixels`).
        """
        return same_images(self._files(included), pixels)

    def split(
        self, included: pd.DataFrame, same: SameImages, pixels: "pd.Series[str]" = NO_PIXELS
    ) -> pd.Series:
        """Assign the split of each included row and apply `split.same_image`.

        Args:
            included: stored, patient_id, official if the source has it, and the findings.
            same: result of `same_images`.
            pixels: what it was made with.

        Raises:
            UserError: an image is listed under two patients and split.same_image is fail; the source has no official
                split; a patient would change the split; a split would be empty or a finding could not be learned.
        """
        # With the excluded patients: the result of the included ones is what it was before.
        everyone = included[["patient_id", *self.findings]]
        if len(self.withheld):
            everyone = pd.concat([everyone, self.withheld[everyone.columns]], ignore_index=True)
        accepted = self._accepted(everyone)
        if same.images and self.config.same_image == "fail":
            raise UserError(self._duplicates_error(same))
        if self.config.same_image == "join":
            if len(self.withheld):
                files = pd.concat([self._files(included), self.withheld[COLUMNS]], ignore_index=True)
                same = same_images(files, pixels)
            if same.images:
                everyone = everyone.assign(patient_id=self._groups(included, everyone, same, accepted))
        group = everyone["patient_id"].iloc[: len(included)].set_axis(included.index)
        if self.config.method == "official":
            named = self._named(included.assign(patient_id=group))
            split = split_official(named, self.source.official(named), self.config)
        elif self.config.method == "hash":
            split = split_by_hash(group, self.config)
            if self.config.same_image == "join" and accepted is not None:
                # A group keeps its accepted split even if its former representative is no longer in the data.
                split = group.map(accepted).fillna(split)
        else:
            split = split_stratified(everyone, self.findings, self.config, accepted)
            split = split.iloc[: len(included)].set_axis(included.index)
        keep_old_patients(included, split, accepted)
        check_split(included.assign(split=split), tuple(self.findings), self.config)
        return split

    def describe(self, same: SameImages, included: pd.DataFrame) -> SameImageCounts:
        """Count images of several patients and show the first, under the ids that the prepared data has.

        Args:
            same: result of `same_images`.
            included: patient_id and the final split.
        """
        split = included.drop_duplicates("patient_id").set_index("patient_id")["split"]
        return SameImageCounts(
            images=same.images,
            patients=same.patients,
            apart=same.apart(split),
            examples=same.examples(self.pseudonymizer),
            joined=self.config.same_image == "join",
        )

    def _files(self, included: pd.DataFrame) -> pd.DataFrame:
        """image_id, hash (of the file) and patient_id of each included row."""
        rows = self.images[["image_id", "hash"]].iloc[included["stored"]].reset_index(drop=True)
        return rows.assign(patient_id=included["patient_id"].array)

    def _accepted(self, rows: pd.DataFrame) -> pd.Series | None:
        """The accepted split, indexed by the ids of the table."""
        if self.accepted is None or not self.pseudonymizer.salt:
            return self.accepted
        split = self.pseudonymizer.ids(rows["patient_id"]).map(self.accepted)
        known = pd.DataFrame({"patient_id": rows["patient_id"], "split": split}).dropna()
        return known.drop_duplicates("patient_id").set_index("patient_id")["split"]

    def _groups(
        self, included: pd.DataFrame, everyone: pd.DataFrame, same: SameImages, accepted: pd.Series | None
    ) -> pd.Series:
        """For each row of everyone, the representative of the patients who must be in the same split."""
        leader = same.groups(None if accepted is None else accepted.index)
        # Excluded patients contradict nobody, and are not named.
        members = leader[leader.index.isin(included["patient_id"])]
        if accepted is not None:
            _check_one_split(
                members,
                pd.Series(members.index, members.index).map(accepted),
                "are in different splits of baseline/split.parquet",
            )
        if self.config.method == "official":
            named = self._named(included[included["patient_id"].isin(members.index)])
            lists = self.source.official(named).groupby(named["patient_id"]).first()
            _check_one_split(members, lists, "are on different official lists")
        return everyone["patient_id"].map(leader).fillna(everyone["patient_id"])

    def _named(self, included: pd.DataFrame) -> pd.DataFrame:
        return included.assign(image_id=self.images["image_id"].iloc[included["stored"]].array)

    def _duplicates_error(self, same: SameImages) -> str:
        remedy = (
            "Correct the patient ids or the files"
            if self.source.layout.patients_known
            else "Keep one file of each"
        )
        lines = [f"  {', '.join(rows)}" for rows in same.examples(self.pseudonymizer)]
        return "\n".join(
            [
                f"{same.images} images are listed under more than one patient ({same.patients} patients). The first:",
                *lines,
                f"{remedy}, or set split.same_image to join (all patients of an image go into one split) or to warn.",
            ]
        )


def _check_one_split(leader: pd.Series, split: pd.Series, what: str) -> None:
    """Raise an error if patients to be joined already have different splits."""
    split_counts = split.dropna().groupby(leader).nunique()
    for name in split_counts.index[split_counts > 1]:
        members = ", ".join(sorted(leader.index[leader == name])[:10])
        raise UserError(
            f"Patients {members} share an image and {what}, so split.same_image: join cannot put them into one split. "
            "Set it to warn, correct the patient ids, or remove the image from the table."
        )
