"""Rows of the excluded patients for split methods that look at all patients, so that nobody else changes the split.

A stratified assignment, and patients joined by a shared image, depend on other patients. Such a split is computed with
the excluded patients as it was before, and then they are removed. Only their rows and the hashes of their files are
read, in memory; no image is decoded. `hash` and `official` without joining need none of this.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ral.config.data import SplitConfig
from ral.data.exclusions import Exclusions
from ral.data.images.file_hashes import FileHashCache
from ral.data.sources.base import Source
from ral.data.tables.spill import ImageIdIndex

COLUMNS = ["image_id", "hash", "patient_id"]


def usable_views(views: Sequence[str]) -> list[str]:
    """The views to include; an image known only to be frontal is either PA or AP."""
    return [*views, "FRONTAL"] if {"PA", "AP"} <= set(views) else list(views)


def withheld_rows(
    source: Source, exclusions: Exclusions, config: SplitConfig, hash_cache: FileHashCache
) -> pd.DataFrame:
    """Rows of the excluded patients that have an image of a usable view, if the split depends on them.

    Args:
        source: the source.
        exclusions: the excluded patients.
        config: how the split is made.
        hash_cache: hashes of files read earlier.

    Returns:
        image_id, hash (of the file) and patient_id, and the findings as int8 (-1: unknown), in the order of the table;
        empty if the split does not depend on them.
    """
    findings = source.findings()
    nobody = pd.DataFrame(columns=[*COLUMNS, *findings], dtype="str")
    if not exclusions or (config.method != "stratified" and config.same_image != "join"):
        return nobody
    patient = source.layout.patient
    raw = pd.concat([exclusions.inverted.kept(chunk, patient) for chunk in source.iter_chunks()])
    if raw.empty:
        return nobody
    raw = raw.reset_index(drop=True)
    images, _ = source.images(raw, lambda _: None, hash_cache)
    studies = source.to_studies(raw)
    stored = ImageIdIndex(images["image_id"]).find(studies["image_id"])
    usable = (stored >= 0) & studies["view"].isin(usable_views(source.config.views)).to_numpy()
    rows = studies.loc[usable, ["image_id", "patient_id"]].reset_index(drop=True)
    rows["hash"] = images["hash"].iloc[stored[usable]].array
    labels = {name: studies.loc[usable, name].fillna(-1).to_numpy(np.int8) for name in findings}
    return rows.assign(**labels)[[*COLUMNS, *findings]]
