"""The images and labels that a model is evaluated on, from a prepared set or from a label table."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from ral.data.dataset import open_dataset
from ral.errors import UserError
from ral.evaluation.rows import ATTRIBUTES, KEYS
from ral.inference.images import PREPARED_BLOCK, InputImage
from ral.inference.records import ModelRecord
from ral.preparation import Preparation

NO_IMAGE = "no image"
VIEW = "view not in data.views"
SEALED_UNKNOWN = (
    "The model's project has sealed test patients (evaluate.sealed). It is not known who they are: they may be among "
    "the patients that were evaluated."
)


@dataclass(frozen=True)
class LabelledImages:
    """Images with labels, before any is decoded."""

    name: str
    """Name of the folder or file that the user named, without its path."""
    source: str
    """Layout: nih, chexpert, …, table."""
    rows: pd.DataFrame
    """image_id, patient_id, split (always test), attributes for the audit, a column per finding: 1, 0 or NaN."""
    images: Callable[[], Iterator[InputImage]]
    """Yields the images of `rows`, in their order, named by image_id."""
    excluded: pd.DataFrame
    """Rows of the table that are not evaluated: image_id and reason."""
    patients_known: bool
    """False: patient_id is the image id."""
    notes: tuple[str, ...] = ()
    """Warnings about the label table and about sealed patients, a sentence each."""

    @property
    def findings(self) -> tuple[str, ...]:
        """Findings that are labelled."""
        return tuple(str(name) for name in self.rows.columns if name not in (*KEYS, *ATTRIBUTES))

    @property
    def missing(self) -> int:
        """Rows of the table without an image file."""
        return int((self.excluded["reason"] == NO_IMAGE).sum())

    def without(self, hidden: np.ndarray, reason: str) -> "LabelledImages":
        """Exclude rows.

        Args:
            hidden: which, bool [rows].
            reason: for the list of excluded rows.
        """
        kept = (~hidden).tolist()

        def images() -> Iterator[InputImage]:
            for image, keep in zip(self.images(), kept, strict=True):
                if keep:
                    yield image

        excluded = self.rows.loc[hidden, ["image_id"]].assign(reason=reason)
        return LabelledImages(
            self.name, self.source, self.rows[~hidden].reset_index(drop=True), images,
            pd.concat([self.excluded, excluded], ignore_index=True), self.patients_known, self.notes,
        )  # fmt: skip


def open_prepared(folder: Path, split: str, preparation: Preparation) -> LabelledImages:
    """Images of the output folder of the step preprocess.

    Args:
        folder: with studies.parquet, dataset.json and shards/.
        split: train, val, test or all.
        preparation: of the model's images.

    Raises:
        UserError: the images were prepared in another way, are damaged, or the split has none.
    """
    dataset = open_dataset(folder)
    recorded = dataset.info.preparation
    prepared = {"fit": "stretch", "range": "own", "size": dataset.info.size}
    prepared |= recorded.model_dump() if recorded else {}
    differing = [
        f"preprocess.{name}={value}"
        for name, value in preparation.model_dump().items()
        if prepared[name] != value
    ]
    if differing:
        raise UserError(
            f"{folder} was prepared in another way than the images of the model. Prepare it again with "
            f"{', '.join(differing)}, or evaluate the label table and the files that it was made of."
        )
    chosen = np.arange(len(dataset)) if split == "all" else dataset.rows(split)
    if not len(chosen):
        raise UserError(f"{folder} has no images in the split {split}.")
    dataset.verify(chosen)
    studies = dataset.studies.iloc[chosen].reset_index(drop=True)
    ids = studies["image_id"].tolist()
    views = studies["view"].astype(str).tolist() if "view" in studies else [""] * len(ids)

    def images() -> Iterator[InputImage]:
        for start in range(0, len(chosen), PREPARED_BLOCK):
            rows = range(start, min(start + PREPARED_BLOCK, len(chosen)))
            for row, pixels in zip(rows, dataset.gather(chosen[rows.start : rows.stop]), strict=True):
                yield InputImage(ids[row], pixels=pixels, view=views[row])

    return LabelledImages(
        name=folder.resolve().name,
        source=dataset.info.source,
        rows=as_test(studies, dataset.findings),
        images=images,
        excluded=pd.DataFrame(columns=["image_id", "reason"], dtype="str"),
        # Sources without patients use the image id.
        patients_known=not (studies["patient_id"].astype(str) == studies["image_id"].astype(str)).all(),
    )


def as_test(studies: pd.DataFrame, findings: Sequence[str]) -> pd.DataFrame:
    """The columns that the evaluation uses, all rows in the split test."""
    attributes = [name for name in ATTRIBUTES if name in studies.columns]
    return studies.assign(split="test")[[*KEYS, *attributes, *findings]]


def hide_sealed(data: LabelledImages, record: ModelRecord) -> LabelledImages:
    """Exclude patients that the model's project has sealed (evaluate.sealed): only opening them may show them.

    Where it is not known who they are, a note says so.

    Raises:
        UserError: no row is left.
    """
    from ral.data.splits.holdout import sealed

    if not record.config.sealed:
        return data
    if record.split is None:
        return replace(data, notes=(*data.notes, SEALED_UNKNOWN))
    known = data.rows[["patient_id"]].assign(split=data.rows["patient_id"].map(record.split))
    hidden = sealed(known, record.config.sealed)
    if hidden.all():
        raise UserError(
            f"All {len(hidden):,} rows of {data.name} are of patients that the model's project has sealed "
            "(evaluate.sealed). Evaluate other data."
        )
    if not data.patients_known and known["split"].isna().any():
        data = replace(data, notes=(*data.notes, SEALED_UNKNOWN))
    return data.without(hidden, "sealed test patient of the model") if hidden.any() else data
