"""Validate the raw label table and locate its images; an error stops the run.

    python -m tasks.validate

Writes validation.json (checks and their results) and images.parquet (location of each image). The Data Docs of Great
Expectations go to runs/<id>/data_docs, even if the data is rejected. A large table is checked in partitions
(docs/sources.md) on Dask's workers (ral.toml); the result does not depend on either.
"""

import logging
from pathlib import Path
from typing import Any

from ral import artifacts
from ral.config.data import ValidateParams
from ral.config.environment import Environment, load_environment
from ral.errors import UserError, plain
from tasks import step

logger = logging.getLogger("tasks.validate")

# Maximum characters of a cell that a message quotes.
MAX_QUOTED = 300


def run(params: ValidateParams, environment: Environment, out: Path, baseline: Path) -> None:
    """Write the validation and the list of images of `data.root` into `out`.

    Raises:
        UserError: the folder, the table or an archive cannot be read, or a check of severity error failed.
    """
    import pandas as pd

    from ral import runs
    from ral.data.baseline import read_profile
    from ral.data.images.file_hashes import FileHashCache
    from ral.data.privacy import read_salt, redact_samples
    from ral.data.sources.base import open_source
    from ral.data.tables.partitions import Partitions
    from ral.data.validation.run import DRIFT_PAGE, TABLE_PAGE, check_drift, check_rows
    from ral.files import atomic_directory, sha256, write_json
    from ral.progress import Progress

    data = environment.located(params.data)
    source = open_source(data)
    source.findings()  # reports a wrong name before the images are read
    salt = read_salt(Path(params.data.pseudonymise)) if params.data.pseudonymise else None
    accepted = read_profile(baseline)
    folder = runs.folder()
    docs = folder / "data_docs"
    with atomic_directory(out) as draft:
        with Partitions(draft / ".rows", source.layout.patient) as rows:
            image_columns = []
            for chunk in source.iter_chunks():
                rows.add(chunk)
                image_columns.append(chunk[source.image_columns])
            raw = pd.concat(image_columns, ignore_index=True)
            with Progress("reading images", source.image_bytes(raw), "B") as progress:
                images, archives = source.images(raw, progress.add, FileHashCache(environment.state_dir))
            del raw, image_columns
            with Progress("checking rows", rows.rows, "rows") as progress:
                summary, checks = check_rows(source, rows, images, environment.dask, progress.add, docs)
        pages = {docs / f"{TABLE_PAGE}.html": checks}
        if accepted:
            pages[docs / f"{DRIFT_PAGE}.html"] = check_drift(accepted, summary["profile"], source, docs)
        checks = [check for part in pages.values() for check in part]
        tables = {
            name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in source.tables()
            if (name := path.relative_to(source.root).as_posix()) not in archives
        }
        passed = not any(check["severity"] == "error" and not check["passed"] for check in checks)
        validation = summary | {"passed": passed, "checks": checks, "files": tables | archives}
        write_json(folder / artifacts.VALIDATION.name, validation)
        if not passed:
            raise UserError(explain(pages, source.named()))
        validation = validation | {"checks": redact_samples(checks, salt)} if salt else validation
        for line in warnings(validation):
            logger.warning("%s", plain(line))
        images.to_parquet(draft / artifacts.IMAGES.name, index=False, compression=None)
        write_json(draft / artifacts.VALIDATION.name, validation)
    kind = "PHANTOM DATA: " if validation["phantom"] else ""
    logger.info(
        f"{kind}{summary['rows']:,} rows, {len(images):,} images: passed. Data Docs: {docs}/index.html"
    )


def explain(pages: dict[Path, list[dict[str, Any]]], table: str) -> str:
    """Error message for failed checks: name, count, sample rows, remedy, and the page with details."""
    lines, details = [f"{table} did not pass validation."], []
    for page, checks in pages.items():
        for check in checks:
            if check["severity"] == "error" and not check["passed"]:
                lines.append(f"- {_failure(check)}.")
                lines += [f"    {_row(sample)}" for sample in check["samples"]]
                lines.append(f"  {check['remedy']}")
                details.append(f"Details: {page}")
    return "\n".join([*lines, *dict.fromkeys(details)])


def _failure(check: dict[str, Any]) -> str:
    rows = check["unexpected"]
    return f'{rows:,} row{"s" * (rows != 1)} failed "{check["check"]}"'


def _row(sample: dict[str, Any]) -> str:
    return f"row {sample['row']}, {_cell(sample['image_id'])}: {_cell(sample['value'])}"


def _cell(value: str | None) -> str:
    """Format a cell: quoted if it has invisible characters, truncated if it is long."""
    cut = value if value is None or len(value) <= MAX_QUOTED else value[:MAX_QUOTED] + "…"
    return cut if cut and cut == cut.strip() and cut.isprintable() else repr(cut)


def warnings(validation: dict[str, Any]) -> list[str]:
    """Warnings about data that passed, one line each."""
    lines = []
    for check in validation["checks"]:
        if check["severity"] == "warning" and not check["passed"]:
            shown = [_row(sample) for sample in check["samples"][:1]]
            first = f" The first: {shown[0]}." if shown and check["samples"][0]["value"] else ""
            lines.append(f"{_failure(check)}.{first} {check['remedy']}")
    if validation["images_without_row"]:
        lines.append(f"{validation['images_without_row']} images have no row in the table and are not used.")
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
