"""Assigns every kept image its split: the method, the patients accepted before, and patients who share an image."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from ral.config.data import SplitConfig
from ral.data.privacy import pseudonymised
from ral.data.sources.base import Source
from ral.data.splits.methods import (
    check_split,
    keep_old_patients,
    split_by_hash,
    split_official,
    split_stratified,
)
from ral.data.tables.duplicates import SameImages, same_images
from ral.errors import UserError

# Of kept rows with equal files only; before there are pixels.
NO_PIXELS = pd.Series(dtype="str", index=pd.Index([], dtype="int64"))


@dataclass(frozen=True)
class Splitter:
    """What the split of a data set depends on.

    Attributes:
        source: the source, for its official split.
        images: rows of `ral.data.images.locate.list_images`.
        findings: the label columns.
        config: the parameters.
        salt: of the pseudonyms by which the accepted split names patients; None where it names them as they are.
        accepted: the accepted split by patient, if there is one.
    """

    source: Source
    images: pd.DataFrame
    findings: Sequence[str]
    config: SplitConfig
    salt: bytes | None
    accepted: pd.Series | None

    def same_images(self, kept: pd.DataFrame, pixels: "pd.Series[str]" = NO_PIXELS) -> SameImages:
        """Images of several patients among the kept rows, by their files and `pixels` (of `ral.data.images.shards.same_pixels`)."""
        rows = self.images[["image_id", "hash"]].iloc[kept["stored"]].reset_index(drop=True)
        return same_images(rows.assign(patient_id=kept["patient_id"].array), pixels)

    def split(self, kept: pd.DataFrame, same: SameImages) -> pd.Series:
        """Split of each kept row; what `split.same_image` asks for is done.

        Args:
            kept: stored, patient_id, the owners' split where there is one, and the findings.
            same: of `same_images`.

        Raises:
            UserError: an image stands under two patients and may not; the source has no official split; a patient would
                move; the split leaves nothing to learn or to test.
        """
        before = self._before(kept)
        people = kept
        if same.images and self.config.same_image == "fail":
            raise UserError(self._refusal(same))
        if same.images and self.config.same_image == "join":
            people = kept.assign(patient_id=self._groups(kept, same, before))
        if self.config.method == "official":
            named = self._named(people)
            split = split_official(named, self.source.official(named), self.config)
        elif self.config.method == "hash":
            split = split_by_hash(people["patient_id"], self.config)
            if self.config.same_image == "join" and before is not None:
                # Who stood for a group when it was accepted may be gone; the others keep its split.
                split = people["patient_id"].map(before).fillna(split)
        else:
            split = split_stratified(people, self.findings, self.config, before)
        keep_old_patients(kept, split, before)
        check_split(kept.assign(split=split), tuple(self.findings), self.config)
        return split

    def _before(self, kept: pd.DataFrame) -> pd.Series | None:
        """The accepted split by the ids of the table."""
        if self.accepted is None or not self.salt:
            return self.accepted
        written = pseudonymised(kept[["patient_id"]], self.salt)["patient_id"]
        known = pd.DataFrame({"patient_id": kept["patient_id"], "split": written.map(self.accepted)}).dropna()
        return known.drop_duplicates("patient_id").set_index("patient_id")["split"]

    def _groups(self, kept: pd.DataFrame, same: SameImages, before: pd.Series | None) -> pd.Series:
        """For each kept row the patient who stands for all that are to be in one split with its own."""
        leader = same.groups(None if before is None else before.index)
        if before is not None:
            _refuse_two(
                leader, pd.Series(leader.index, leader.index).map(before), "were accepted in two splits"
            )
        if self.config.method == "official":
            named = self._named(kept[kept["patient_id"].isin(leader.index)])
            lists = self.source.official(named).groupby(named["patient_id"]).first()
            _refuse_two(leader, lists, "stand on different official lists")
        return kept["patient_id"].map(leader).fillna(kept["patient_id"])

    def _named(self, kept: pd.DataFrame) -> pd.DataFrame:
        return kept.assign(image_id=self.images["image_id"].iloc[kept["stored"]].array)

    def _refusal(self, same: SameImages) -> str:
        mend = (
            "Correct the patient ids or the files"
            if self.source.layout.patients_known
            else "Keep one file of each"
        )
        lines = [f"  {', '.join(rows)}" for rows in same.examples(self.salt)]
        return "\n".join(
            [
                f"Images that stand under more than one patient: {same.images}, of {same.patients} patients. The first:",
                *lines,
                f"{mend}, or set split.same_image to join (the patients of an image go into one split) or to warn.",
            ]
        )


def _refuse_two(leader: pd.Series, split: pd.Series, what: str) -> None:
    """Refuse to join patients who have two splits already."""
    apart = split.dropna().groupby(leader).nunique()
    for name in apart.index[apart > 1]:
        members = ", ".join(sorted(leader.index[leader == name])[:10])
        raise UserError(
            f"Patients {members} share an image and {what}, so that split.same_image: join cannot put them into one. "
            "Set it to warn, correct the patient ids, or take the image out of the table."
        )
