"""Validate the raw label table and locate its images; an error stops the run.

    python -m tasks.validate

Writes validation.json (checks and their results) and images.parquet (location of each image). The Data Docs of Great
Expectations go to runs/<id>/data_docs, even if the data is rejected. A large table is checked in partitions
(docs/sources.md) on Dask's workers (ral.toml); the result does not depend on either.
"""

import logging
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ral import artifacts
from ral.config.data import ValidateParams
from ral.config.environment import Environment, load_environment
from ral.data.validation import messages
from ral.errors import UserError, plain
from ral.labels import marked
from tasks import step

if TYPE_CHECKING:
    import pandas as pd

    from ral.data.exclusions import Excluder
    from ral.data.file_hash import FileHash
    from ral.data.sources.base import Source
    from ral.data.tables.partitions import Partitions
    from ral.data.validation.result import Check, ValidationResult

logger = logging.getLogger("tasks.validate")


def run(params: ValidateParams, environment: Environment, out: Path, baseline: Path) -> None:
    """Write the validation and the list of images of `data.root` into `out`.

    Raises:
        UserError: the folder, the table or an archive cannot be read, or a check of severity error failed.
    """
    from ral import runs
    from ral.data.baseline import read_profile
    from ral.data.exclusions import Excluder, Exclusions
    from ral.data.images.file_hashes import FileHashCache
    from ral.data.privacy import read_salt, redact_samples
    from ral.data.sources.base import open_source
    from ral.data.tables.partitions import Partitions
    from ral.data.validation.result import ValidationResult
    from ral.data.validation.run import DRIFT_PAGE, TABLE_PAGE, check_drift, check_rows
    from ral.files import atomic_directory
    from ral.progress import Progress

    data = environment.located(params.data)
    source = open_source(data)
    source.findings()  # reports a wrong name before the images are read
    salt = read_salt(Path(params.data.pseudonymise)) if params.data.pseudonymise else None
    accepted = read_profile(baseline)
    excluder = Excluder(Exclusions.of(data), source.layout.patient, source.layout.image)
    folder, docs = runs.folder(), runs.folder() / "data_docs"
    with atomic_directory(out) as draft:
        with Partitions(draft / ".rows", source.layout.patient) as rows:
            raw = read_rows(source, excluder, rows)
            with Progress("reading images", source.image_bytes(raw), "B") as progress:
                images, archives = source.images(raw, progress.add, FileHashCache(environment.state_dir))
            del raw
            images = excluder.images(images)
            with Progress("checking rows", rows.rows, "rows") as progress:
                summary, checks = check_rows(source, rows, images, environment.dask, progress.add, docs)
        if excluder.without_row is not None:
            # The name of an archive without a row may be an id.
            archives = {name: archives[name] for name in set(images["path"]) & set(archives)}
            summary = summary.model_copy(update={"images_without_row": excluder.without_row})
        pages = {docs / f"{TABLE_PAGE}.html": checks}
        if accepted:
            pages[docs / f"{DRIFT_PAGE}.html"] = check_drift(accepted, summary.profile, source, docs)
        checks = [check for part in pages.values() for check in part]
        result = ValidationResult(
            **dict(summary),
            passed=not any(check.stops for check in checks),
            checks=checks,
            files=hash_tables(source, archives) | archives,
        )
        result.write(folder / artifacts.VALIDATION.name)
        if not result.passed:
            raise UserError(explain(pages, source.named()))
        if salt:
            result = result.model_copy(update={"checks": redact_samples(checks, salt)})
        excluder.log()
        for line in warnings(result):
            logger.warning("%s", plain(line))
        images.to_parquet(draft / artifacts.IMAGES.name, index=False, compression=None)
        result.write(draft / artifacts.VALIDATION.name)
    done = f"{result.rows:,} rows, {len(images):,} images: passed. Data Docs: {docs}/index.html"
    logger.info(marked(done, result.phantom))


def read_rows(source: "Source", excluder: "Excluder", rows: "Partitions") -> "pd.DataFrame":
    """Write the rows to check into `rows`; returns the columns that locate their images."""
    import pandas as pd

    image_columns = []
    for chunk in excluder.chunks(source.iter_chunks()):
        rows.add(chunk)
        image_columns.append(chunk[source.image_columns])
    return pd.concat(image_columns, ignore_index=True)


def hash_tables(source: "Source", hashed: "Container[str]") -> "dict[str, FileHash]":
    """Sizes and hashes of the files of a source's table, but not of `hashed`, by path relative to the data folder."""
    from ral.data.file_hash import FileHash
    from ral.files import sha256

    return {
        name: FileHash(bytes=path.stat().st_size, sha256=sha256(path))
        for path in source.tables()
        if (name := path.relative_to(source.root).as_posix()) not in hashed
    }


def explain(pages: "Mapping[Path, Sequence[Check]]", table: str) -> str:
    """Error message for failed checks: name, count, sample rows, remedy, and the page with details."""
    lines, details = [f"{table} did not pass validation."], []
    for page, checks in pages.items():
        failed = messages.failures(checks)
        lines += failed
        details += [f"Details: {page}"] if failed else []
    return "\n".join([*lines, *details])


def warnings(result: "ValidationResult") -> list[str]:
    """Warnings about data that passed, one line each."""
    lines = messages.warnings(result.checks)
    if result.images_without_row:
        lines.append(f"{result.images_without_row} images have no row in the table and are not used.")
    return lines


if __name__ == "__main__":
    step.command(
        "validate", __doc__, run, ValidateParams,
        {
            "out": (artifacts.VALIDATED, "folder to write"),
            "baseline": (artifacts.BASELINE, "folder with the accepted profile, if any"),
        },
        load_environment,
    )  # fmt: skip
