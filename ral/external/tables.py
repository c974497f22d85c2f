"""Opens a label table with its images: in the layout of a source, or your own table with a folder of images."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import ValidationError

from ral.config.base import Section, explain, read_yaml
from ral.config.dask import DaskTarget
from ral.config.data import DataConfig, PreprocessConfig
from ral.data.exclusions import Excluder, Exclusions
from ral.data.images.decode import dicom_start
from ral.data.images.file_hashes import FileHashCache
from ral.data.images.file_names import is_hidden, shown
from ral.data.images.locate import list_files
from ral.data.privacy import pseudonymize, read_salt, redact_samples
from ral.data.sources.base import Source, open_source
from ral.data.sources.parquet import is_parquet, parquet_files
from ral.data.sources.text import read_header
from ral.errors import UserError
from ral.external.labelled import NO_IMAGE, VIEW, LabelledImages, as_test
from ral.inference.images import InputImage
from ral.inference.source_images import dark_image, image_contents
from ral.labels import NO_FINDING
from ral.preparation import Preparation
from ral.progress import Progress
from ral.suggest import nearest

# Columns of a user's table that are used under these names if it has them.
OPTIONAL = ("view", "sex", "age_years")
SEPARATORS = ",;\t"
FRONTAL = ("PA", "AP")


class _DataParams(Section):
    """The section of a parameter file that describes the labelled images."""

    data: DataConfig


def read_params(path: Path) -> tuple[DataConfig, str]:
    """Read the section data of a parameter file, and preprocess.monochrome1 ("fail" if it is not there).

    missing_images and views have defaults here: drop, and PA and AP.

    Raises:
        UserError: the file is missing, or the section is missing or invalid.
    """
    content = read_yaml(path)
    if not isinstance(content.get("data"), dict):
        raise UserError(f"{path} has no section data. docs/sources.md describes it.")
    data = {"missing_images": "drop", "views": list(FRONTAL)} | content["data"]
    choice = (content.get("preprocess") or {}).get("monochrome1", "fail")
    try:
        PreprocessConfig.model_validate({"size": 64, "shard_images": 1, "monochrome1": choice})
        return _DataParams.model_validate({"data": data}).data, choice
    except ValidationError as error:
        raise UserError(explain(error, _DataParams, path)) from None


def published(source: str, root: Path) -> DataConfig:
    """A data set as its publisher ships it; rows without an image are left out and listed.

    Raises:
        UserError: the source is `table`.
    """
    if source == "table":
        raise UserError(
            "--source table needs the columns: name the table itself with --data, or a params.yaml."
        )
    return DataConfig.model_validate(
        {"source": source, "root": str(root), "missing_images": "drop", "views": list(FRONTAL)}
    )


def own_table(path: Path, findings: Sequence[str], image: str, patient: str | None) -> DataConfig:
    """A table with a column per finding, named like the findings of the model.

    Args:
        path: .csv, .csv.gz or .parquet.
        findings: of the model.
        image: column with the image id, which is a path or a name of a file.
        patient: column with the patient id; None: each image counts as a patient.

    Raises:
        UserError: the file cannot be read, lacks a column, or has no finding of the model.
    """
    if is_parquet(path):
        import pyarrow.parquet as pq

        header, separator = list(pq.read_schema(parquet_files(path)[0]).names), ","
    else:
        headers = {one: read_header(path, one) for one in SEPARATORS}
        separator = max(SEPARATORS, key=lambda one: len(headers[one]))
        header = headers[separator]
    listed = ", ".join(map(shown, header)) or "no columns"
    if image not in header:
        raise UserError(
            f"{path} has no column {image}. Name the column of the images with --image-column; {listed}."
        )
    if patient is not None and patient not in header:
        raise UserError(
            f"{path} has no column {patient}. Name the column of the patients with --patient-column; or state with "
            f"--without-patients that they are not known: intervals are then by image, and too narrow where a patient "
            f"has several. Columns: {listed}."
        )
    labelled = [name for name in findings if name in header]
    if not labelled:
        near = {name: nearest(name, findings) for name in header}
        hints = ", ".join(f"{shown(name)} to {close[0]}" for name, close in near.items() if close)
        raise UserError(
            f"{path} has no column with the name of a finding of the model. The model has {', '.join(findings)}; the "
            f"table has {listed}. Rename its columns{f' ({hints})' if hints else ''}, or describe them in a "
            "params.yaml (python -m ral.data.sources.table)."
        )
    optional = {name: name for name in OPTIONAL if name in header}
    no_finding = NO_FINDING if NO_FINDING in header and NO_FINDING not in labelled else None
    table = {
        "file": path.name, "separator": separator, "image_id": image, "patient_id": patient or image,
        "no_finding": no_finding, "findings": {name: name for name in labelled}, **optional,
    }  # fmt: skip
    try:
        return DataConfig.model_validate(
            {
                "source": "table",
                "root": str(path.parent),
                "missing_images": "drop",
                "views": list(FRONTAL),
                "table": table,
            }
        )
    except ValidationError as error:
        raise UserError(f"{path}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def open_table(
    config: DataConfig, name: str, folder: Path | None, monochrome1: str, preparation: Preparation
) -> LabelledImages:
    """Read, validate and convert a label table, and find its images.

    Args:
        config: the table and its layout.
        name: of the data, for the report.
        folder: images anywhere below it, named by the image ids; None: as the layout says.
        monochrome1: what becomes of PNG and JPEG images that the table marks so (preprocess.monochrome1).
        preparation: of the model's images.

    Raises:
        UserError: the table did not pass validation, or no image was found.
    """
    source = open_source(config)
    findings = source.findings()
    salt = read_salt(Path(config.pseudonymise)) if config.pseudonymise else None
    exclusions = Exclusions.of(config)
    with tempfile.TemporaryDirectory(prefix="ral-evaluate-") as scratch:
        images, notes = _validated(source, exclusions, folder, Path(scratch), salt)
    chunks = (exclusions.kept(chunk, source.layout.patient) for chunk in source.iter_chunks())
    studies = pd.concat([source.to_studies(chunk) for chunk in chunks], ignore_index=True)
    images = images.reset_index(drop=True)
    stored = pd.Series(images.index, index=images["image_id"])
    index = studies["image_id"].map(stored)
    views = {*config.views, "FRONTAL"} if set(FRONTAL) <= set(config.views) else set(config.views)
    reason = pd.Series("", index=studies.index)
    reason[index.isna()] = NO_IMAGE
    reason[~studies["view"].isin(views)] = VIEW
    excluded = studies.loc[reason != "", ["image_id"]].assign(reason=reason[reason != ""])
    used = studies[reason == ""].assign(stored=index[reason == ""].astype(int))
    if used.empty:
        counts = ", ".join(f"{count} {text}" for text, count in excluded["reason"].value_counts().items())
        raise UserError(
            f"No usable image: all {len(excluded)} rows of {source.named()} are excluded: {counts}. "
            "Check the folder of the images (--images, or data.root), the ids, and data.views."
        )
    used = used.sort_values("stored", ignore_index=True)
    images = images.iloc[used["stored"]].reset_index(drop=True)
    dark = used["monochrome1"].to_numpy(bool) if "monochrome1" in used else np.zeros(len(used), bool)
    root = folder or source.root
    ids, shown_views = used["image_id"], used["view"].astype(str).tolist()
    if salt:
        used, excluded = pseudonymize(used, salt), pseudonymize(excluded, salt)
        ids = used["image_id"]

    def stream() -> Iterator[InputImage]:
        contents = zip(ids, shown_views, dark, image_contents(root, images), strict=True)
        for image_id, view, is_dark, content in contents:
            if is_dark and dicom_start(content) is None:
                yield dark_image(image_id, content, view, monochrome1, preparation)
            else:
                yield InputImage(image_id, content, view=view)

    return LabelledImages(
        name, config.source, as_test(used, findings), stream, excluded.reset_index(drop=True),
        source.layout.patients_known, notes,
    )  # fmt: skip


def match_files(folder: Path, image_ids: "pd.Series[str]") -> pd.DataFrame:
    """Find images anywhere below a folder by path below it, file name, or file name without ending, in this order.

    Returns:
        image_id and path below the folder, sorted by path; ids without a file are left out.

    Raises:
        UserError: two files fit an id equally well.
    """
    wanted = set(image_ids)
    found: dict[str, list[tuple[int, str]]] = {}
    for current, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        below = Path(current).relative_to(folder)
        for name in sorted(name for name in names if not is_hidden(name)):
            path = (below / name).as_posix()
            for rank, key in enumerate((path, name, name.rpartition(".")[0])):
                if key in wanted:
                    found.setdefault(key, []).append((rank, path))
                    break
    rows: list[tuple[str, str]] = []
    for image_id, candidates in found.items():
        best = min(rank for rank, _ in candidates)
        paths = [path for rank, path in candidates if rank == best]
        if len(paths) > 1:
            raise UserError(
                f"Image {shown(image_id)} may be {shown(folder / paths[0])} or {shown(folder / paths[1])}. Write its "
                "path below the folder into the table, or keep one file."
            )
        rows.append((paths[0], image_id))
    return pd.DataFrame(sorted(rows), columns=["path", "image_id"], dtype="str")


def _validated(
    source: Source, exclusions: Exclusions, folder: Path | None, scratch: Path, salt: bytes | None
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Locate the images and check the table as the step validate does.

    Returns:
        Images, and warnings; with a salt these quote no cell.
    """
    from ral.data.tables.partitions import Partitions
    from ral.data.validation import messages
    from ral.data.validation.run import check_rows

    with Partitions(scratch / "rows", source.layout.patient) as rows:
        columns = dict.fromkeys([source.layout.image, *source.image_columns])
        parts = []
        excluder = Excluder(exclusions, source.layout.patient, source.layout.image)
        for chunk in excluder.chunks(source.iter_chunks()):
            rows.add(chunk)
            parts.append(chunk[list(columns)])
        raw = pd.concat(parts, ignore_index=True)
        if folder is None:
            with Progress("reading images", source.image_bytes(raw), "B") as progress:
                images, _ = source.images(raw, progress.add)
        else:
            images = _listed(folder, raw[source.layout.image])
        images = excluder.images(images)
        excluder.log()
        # An empty file is a bad image here, one of the list, and no reason to stop.
        sizes = images.assign(bytes=images["bytes"].clip(lower=1))
        _, checks = check_rows(source, rows, sizes, DaskTarget(), lambda _: None, scratch / "docs")
    failed = messages.failures(checks)
    if failed:
        raise UserError("\n".join([f"{source.named()} did not pass validation.", *failed]))
    # The warnings become outputs.
    return images, tuple(messages.warnings(redact_samples(checks, salt) if salt else checks))


def _listed(folder: Path, image_ids: "pd.Series[str]") -> pd.DataFrame:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder. Name the folder of the images with --images.")
    matched = match_files(folder, image_ids)
    if matched.empty:
        raise UserError(
            f"No image of the table is below {folder}: the first id is {shown(image_ids.iloc[0])}. An id is the path "
            "of the file below the folder, or its name with or without ending. Correct --images or --image-column."
        )
    sizes = sum((folder / path).stat().st_size for path in matched["path"])
    with Progress("reading images", sizes, "B") as progress:
        files = list_files(folder, matched["path"].tolist(), progress.add, FileHashCache(None))
    return files.assign(image_id=matched["image_id"])
