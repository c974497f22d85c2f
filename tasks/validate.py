"""Check the raw label table and find its images; an error stops the run.

    python -m tasks.validate

Writes validation.json (what was checked, and how it ended) and images.parquet (where each image is). Great
Expectations' Data Docs are there even of data that was refused, and go to runs/<id>/data_docs. A large table is checked in
partitions (docs/sources.md), by Dask's workers (ral.toml); the validation does not depend on either.
"""

from pathlib import Path
from typing import Any

from ral.config.base import load
from ral.config.data import ValidateParams
from ral.config.environment import Environment, load_environment
from ral.errors import UserError, plain
from tasks import step

# Characters of a cell that a message quotes.
LONGEST = 300


def run(params: ValidateParams, environment: Environment, out: Path, baseline: Path) -> None:
    """Write the validation and the list of images of `data.root` into `out`.

    Raises:
        UserError: the folder, table or an archive cannot be read, or a check of severity error failed.
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
    source.findings()  # says now, not after the images are read, that a name is wrong
    salt = read_salt(Path(params.data.pseudonymise)) if params.data.pseudonymise else None
    accepted = read_profile(baseline)
    folder = runs.folder()
    docs = folder / "data_docs"
    with atomic_directory(out) as draft:
        with Partitions(draft / ".rows", source.layout.patient) as rows:
            named = []
            for piece in source.iter_chunks():
                rows.add(piece)
                named.append(piece[source.image_columns])
            raw = pd.concat(named, ignore_index=True)
            with Progress("reading images", source.image_bytes(raw), "B") as progress:
                images, archives = source.images(raw, progress.add, FileHashCache(environment.state_dir))
            del raw, named
            with Progress("checking rows", rows.rows, "rows") as progress:
                facts, checks = check_rows(source, rows, images, environment.dask, progress.add, docs)
        pages = {docs / f"{TABLE_PAGE}.html": checks}
        if accepted:
            pages[docs / f"{DRIFT_PAGE}.html"] = check_drift(accepted, facts["profile"], source, docs)
        checks = [check for part in pages.values() for check in part]
        tables = {
            name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in source.tables()
            if (name := path.relative_to(source.root).as_posix()) not in archives
        }
        passed = not any(check["severity"] == "error" and not check["passed"] for check in checks)
        validation = facts | {"passed": passed, "checks": checks, "files": tables | archives}
        write_json(folder / "validation.json", validation)
        if not passed:
            raise UserError(explain(pages, source.named()))
        validation = validation | {"checks": redact_samples(checks, salt)} if salt else validation
        for line in warnings(validation):
            print(f"warning: {plain(line)}")
        images.to_parquet(draft / "images.parquet", index=False, compression=None)
        write_json(draft / "validation.json", validation)
    kind = "PHANTOM images: " if validation["phantom"] else ""
    print(f"{kind}{facts['rows']:,} rows, {len(images):,} images: passed. Data Docs: {docs}/index.html")


def explain(pages: dict[Path, list[dict[str, Any]]], table: str) -> str:
    """The failed checks for people: what, how many, which rows, what to do, and the page that shows them."""
    lines, details = [f"{table} did not pass validation."], []
    for page, checks in pages.items():
        for check in checks:
            if check["severity"] == "error" and not check["passed"]:
                lines.append(f"- {check['check']}: not so in {check['unexpected']:,} rows.")
                lines += [f"    {_row(sample)}" for sample in check["samples"]]
                lines.append(f"  {check['remedy']}")
                details.append(f"Details: {page}")
    return "\n".join([*lines, *dict.fromkeys(details)])


def _row(sample: dict[str, Any]) -> str:
    return f"row {sample['row']}, {_cell(sample['image_id'])}: {_cell(sample['value'])}"


def _cell(value: str | None) -> str:
    """A cell as it is, in quotes where one would not see what is in it, and cut where it is long."""
    cut = value if value is None or len(value) <= LONGEST else value[:LONGEST] + "…"
    return cut if cut and cut == cut.strip() and cut.isprintable() else repr(cut)


def warnings(validation: dict[str, Any]) -> list[str]:
    """What passed but should be known, a line each."""
    lines = []
    for check in validation["checks"]:
        if check["severity"] == "warning" and not check["passed"]:
            shown = [_row(sample) for sample in check["samples"][:1]]
            first = f" The first: {shown[0]}." if shown and check["samples"][0]["value"] else ""
            lines.append(
                f"{check['check']}: not so in {check['unexpected']:,} rows.{first} {check['remedy']}"
            )
    if validation["images_without_row"]:
        lines.append(f"{validation['images_without_row']} images have no row in the table and are not used.")
    return lines


if __name__ == "__main__":
    options = step.parse(
        __doc__,
        {
            "out": ("data/validated", "folder to write"),
            "baseline": ("baseline", "the accepted profile, if there is one"),
        },
    )
    step.main(
        "validate",
        lambda: run(load(options.params, ValidateParams), load_environment(), options.out, options.baseline),
    )
