"""The report's tables about the data: images used and excluded, split, labels, checks and file hashes."""

from collections.abc import Sequence

from ral.data.dataset_info import ClassCounts, DatasetInfo
from ral.data.validation.result import Sample, ValidationResult
from ral.evaluation.table_rows import CharacteristicsRow, FindingRow
from ral.reporting.tables import SPLITS, Cell, Table
from ral.wording import known, percent

ATTRIBUTES = {"sex": "Sex", "age_years": "Age", "view": "View", "source": "Source", "finding": "Finding"}


def images(validation: ValidationResult, dataset: DatasetInfo) -> Table:
    """From the rows of the label table to the images that were used."""
    excluded = [
        [f"excluded: {reason}", f"{count:,}", percent(count / dataset.rows)]
        for reason, count in sorted(dataset.left_out.items())
    ]
    return Table(
        "From the label table to the images used",
        ("What", "Count", "Share of the rows"),
        "lrr",
        [
            ["rows of the label table", f"{validation.rows:,}", ""],
            ["patients in the label table", f"{validation.patients:,}", ""],
            ["image files found", f"{validation.images:,}", ""],
            ["image files without a row, not used", f"{validation.images_without_row:,}", ""],
            *(excluded or [["excluded", "0", percent(0.0)]]),
            ["images used", f"{dataset.images:,}", percent(dataset.images / dataset.rows)],
            ["patients used", f"{dataset.patients:,}", ""],
        ],
    )


def same_images(dataset: DatasetInfo) -> Table:
    """Images that occur under more than one patient, with examples."""
    same = dataset.same_image
    caption = (
        f"{same.images:,} images occur under more than one patient ({same.patients:,} patients); "
        f"the patients of {same.apart:,} are in more than one split"
    )
    content = [[Cell("\n".join(rows), "code lines")] for rows in same.examples]
    return Table(caption, ("Images with identical pixels",), "l", content)


def notes(dataset: DatasetInfo) -> Table:
    """Warnings about used images, and corrections applied to them."""
    rows = [[note.text, f"{note.images:,}", ", ".join(note.examples)] for note in dataset.notes.values()]
    if dataset.inverted:
        rows.insert(0, ["MONOCHROME1 according to the table: inverted.", f"{dataset.inverted:,}", ""])
    return Table("Notes on images", ("Note", "Images", "Examples"), "wrw", rows)


def split(dataset: DatasetInfo) -> Table:
    """Images and patients of each split."""
    return Table(
        "Split by patient; no patient is in two splits",
        ("Split", "Images", "Patients", "Share of the images"),
        "lrrr",
        [
            [
                title,
                f"{dataset.split[name].images:,}",
                f"{dataset.split[name].patients:,}",
                percent(dataset.split[name].images / dataset.images),
            ]
            for name, title in SPLITS.items()
        ],
    )


def characteristics(rows: Sequence[CharacteristicsRow]) -> Table:
    """Sex, age, view, source and findings of the images of each split."""
    groups: dict[tuple[str, str], dict[str, CharacteristicsRow]] = {}
    for row in rows:
        groups.setdefault((row.attribute, row.group), {})[row.split] = row
    totals = [groups["all", "all"][split].images for split in SPLITS]
    content = []
    for (attribute, group), by_split in groups.items():
        cells = [by_split[split] for split in SPLITS]
        if attribute == "all":
            content.append(["Images", *(f"{cell.images:,}" for cell in cells)])
            content.append(["Patients", *(f"{cell.patients:,}" for cell in cells)])
        elif attribute == "age_years":
            content.append(["Age in years, median (quartiles)", *(_ages(cell) for cell in cells)])
            if any(cell.images < cell.of for cell in cells):
                content.append(["Age: unknown", *(_share(cell.of - cell.images, cell.of) for cell in cells)])
        else:
            counts = [
                _share(cell.images, cell.of) + (f"; {total - cell.of:,} unknown" if total > cell.of else "")
                for cell, total in zip(cells, totals, strict=True)
            ]
            content.append([f"{ATTRIBUTES[attribute]}: {group}", *counts])
    return Table(
        "Sex, age, view and findings of each split",
        ("Characteristic", *(title.capitalize() for title in SPLITS.values())),
        "lrrr",
        content,
    )


def _share(count: int, of: int) -> str:
    return f"{count:,} ({percent(count / of)})" if of else f"{count:,}"


def _ages(cell: CharacteristicsRow) -> str:
    return f"{cell.median:g} ({cell.q1:g}–{cell.q3:g})" if known(cell.median) else "unknown"


def labels(counts: ClassCounts, rows: Sequence[FindingRow]) -> Table:
    """Labels of each finding in each split."""
    kinds = [
        (name, kind)
        for name in SPLITS
        for kind in ("positives", "negatives", "unknown")
        if kind != "unknown" or any(counts[split].unknown[row.finding] for split in SPLITS for row in rows)
    ]
    return Table(
        "Labels in each split" + ("" if len(kinds) == 9 else " (no label is unknown)"),
        (
            "Finding",
            "Tier",
            "Training prevalence",
            *(f"{SPLITS[name].capitalize()} {kind}" for name, kind in kinds),
        ),
        "llr" + "r" * len(kinds),
        [
            [
                row.finding,
                Cell(row.tier, f"tier {row.tier}"),
                percent(row.train_prevalence),
                *(f"{getattr(counts[name], kind)[row.finding]:,}" for name, kind in kinds),
            ]
            for row in rows
        ],
    )


def checks(validation: ValidationResult) -> Table:
    """The checks of the label table, with a remedy for failed ones."""
    content: list[list[str | Cell]] = []
    for check in validation.checks:
        samples = "\n".join(_sample(sample) for sample in check.samples)
        if check.unexpected > len(check.samples) > 0:
            samples += "\n…"
        content.append(
            [
                check.check,
                check.column,
                check.severity,
                Cell("passed", "passed") if check.passed else Cell("failed", f"failed {check.severity}"),
                f"{check.unexpected:,}",
                Cell(samples, "code lines") if samples else "none",
                "none needed" if check.passed else check.advice,
            ]
        )
    return Table(
        "Checks of the label table",
        ("Check", "Column", "Severity", "Result", "Rows", "First failing rows", "Remedy"),
        "llllrww",
        content,
    )


def hashes(validation: ValidationResult, dataset: DatasetInfo) -> Table:
    """Sizes and hashes of the raw and the prepared files."""
    content: list[list[str | Cell]] = [
        [name, f"{file.bytes:,} bytes", _hash(file.sha256)] for name, file in sorted(validation.files.items())
    ]
    content += [[shard.name, f"{shard.images:,} images", _hash(shard.sha256)] for shard in dataset.shards]
    return Table("Raw and prepared files", ("File", "Size", "SHA-256, first 12 digits"), "lrl", content)


def _sample(sample: Sample) -> str:
    value = "" if sample.value is None else f": {sample.value}"
    return f"row {sample.row}, {sample.image_id}{value}"


def _hash(digest: str) -> Cell:
    return Cell(digest[:12], "code", digest)
