"""What dataset.json says of prepared data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ral.config.data import PreprocessParams
from ral.data.dataset_info import BoxCounts, ClassCounts, DatasetInfo, Note, SameImageCounts, SplitSize
from ral.data.images.decode import NOTES
from ral.data.images.pack import PackResult, pixel_statistics
from ral.data.splits.methods import SPLITS
from ral.preparation import ImageProfile, Preparation

# Example images listed per note.
NOTE_EXAMPLES = 3
# Quantiles of a profile: 1 % of the training images are outside.
PROFILE_QUANTILES = (0.005, 0.995)


@dataclass(frozen=True)
class Prepared:
    """Prepared data, and how it came about.

    Attributes:
        included: rows with good images, with their split.
        packing: images that were to be packed, and whether they were inverted.
        packed: result of packing them.
        rows: number of rows of the label table.
        reasons: reason of each excluded row and image.
        same_image: images of several patients.
        boxes: what became of the box tables; None if there are none.
    """

    included: pd.DataFrame
    packing: pd.DataFrame
    packed: PackResult
    rows: int
    reasons: "pd.Series[str]"
    same_image: SameImageCounts
    boxes: BoxCounts | None

    def info(
        self,
        params: PreprocessParams,
        findings: Sequence[str],
        phantom: bool,
        counts: ClassCounts,
        studies: Path,
    ) -> DatasetInfo:
        """Content of dataset.json."""
        size = params.preprocess.size
        train_sums = self.packed.sums[(self.included["split"] == "train").to_numpy()]
        mean, deviation = pixel_statistics(train_sums, size)
        patients = self.included.groupby("split")["patient_id"].nunique()
        inverted = self.packing["invert"].to_numpy()[self.packed.good] if "invert" in self.packing else []
        return DatasetInfo(
            source=params.data.source,
            phantom=phantom,
            images=len(self.included),
            patients=self.included["patient_id"].nunique(),
            rows=self.rows,
            left_out=self.reasons.value_counts().sort_index().to_dict(),
            same_image=self.same_image,
            inverted=int(np.sum(inverted)),
            notes=count_notes(self.packed.notes, self.packing["image_id"]),
            findings=findings,
            size=size,
            pixel_mean=mean,
            pixel_deviation=deviation,
            preparation=Preparation.model_validate(
                params.preprocess.model_dump(include=set(Preparation.model_fields))
            ),
            profile=training_profile(studies, train_sums, size),
            split={
                name: SplitSize(images=counts[name].images, patients=int(patients.get(name, 0)))
                for name in SPLITS
            },
            shards=self.packed.shards,
            **({} if self.boxes is None else {"boxes": self.boxes}),
        )


def training_profile(studies: Path, sums: np.ndarray, size: int) -> ImageProfile:
    """What the training images look like, against which images are compared that the model is used on.

    Args:
        studies: studies.parquet.
        sums: int64 [training images, 2], sum of the pixels and of their squares.
        size: height and width of an image.
    """
    table = pd.read_parquet(studies, columns=["view", "split"])
    views = table.loc[table["split"] == "train", "view"].astype(str).value_counts().sort_index()
    mean = sums[:, 0] / size**2
    deviation = np.sqrt(np.maximum(sums[:, 1] / size**2 - mean**2, 0))

    def ends(values: np.ndarray) -> list[float]:
        return [round(float(value), 3) for value in np.quantile(values, PROFILE_QUANTILES)]

    return ImageProfile(
        views={str(view): int(count) for view, count in views.items()},
        image_mean=ends(mean),
        image_deviation=ends(deviation),
    )


def count_notes(notes: Sequence[str], image_ids: "pd.Series[str]") -> dict[str, Note]:
    """Number of images and first examples for each note (`ral.data.images.decode.NOTES`)."""
    noted: dict[str, list[int]] = {}
    for index, note in enumerate(notes):
        for name in filter(None, note.split(",")):
            noted.setdefault(name, []).append(index)
    return {
        name: Note(text=NOTES[name], images=len(rows), examples=image_ids.iloc[rows[:NOTE_EXAMPLES]].tolist())
        for name, rows in sorted(noted.items())
    }
