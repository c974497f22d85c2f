"""Render the outputs of the steps as one self-contained HTML page; the same inputs give the same bytes."""

import importlib.metadata
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pandas as pd
from markupsafe import Markup

from ral import wording
from ral.config.params import ReportParams
from ral.data.dataset_info import ClassCounts, DatasetInfo
from ral.data.validation.result import ValidationResult
from ral.evaluation.calibration_io import SavedCalibration
from ral.evaluation.results import Metrics
from ral.evaluation.table_rows import (
    AuditRow,
    CharacteristicsRow,
    ComparisonRow,
    FindingRow,
    OperatingRow,
    ReadingRow,
    read_rows,
)
from ral.explain.contents import Gallery, Geometry
from ral.labels import marked
from ral.reporting import (
    audit,
    calibration,
    comparison,
    data_tables,
    flow,
    gallery,
    localisation,
    network,
    overview,
    plots,
    robustness,
    scripts,
    tables,
)
from ral.reporting.run_info import RUN_FILE, with_digest
from ral.robustness.contents import Robustness

if TYPE_CHECKING:
    from ral.models.info import ModelInfo

# Packages whose version can affect the results.
PACKAGES = (
    "torch",
    "deepspeed",
    "timm",
    "dask",
    "pyarrow",
    "pandas",
    "numpy",
    "great-expectations",
    "scikit-learn",
)


@dataclass(frozen=True)
class Inputs:
    """The outputs of the previous steps."""

    params: ReportParams
    validation: ValidationResult
    """validation.json of the step validate."""
    dataset: DatasetInfo
    """dataset.json of the step preprocess."""
    class_counts: ClassCounts
    """class_counts.json of the step preprocess."""
    model: "ModelInfo"
    """model.json of the step train."""
    history: pd.DataFrame
    """history.csv of the step train."""
    metrics: Metrics
    """metrics.json of the step evaluate."""
    findings: pd.DataFrame
    """findings.csv of the step evaluate."""
    curves: pd.DataFrame
    """curves.csv of the step evaluate."""
    calibration: SavedCalibration
    """calibration.json of the step evaluate."""
    reliability: pd.DataFrame
    """reliability.csv of the step evaluate."""
    operating: pd.DataFrame
    """operating.csv of the step evaluate."""
    decision_curves: pd.DataFrame
    """decision_curves.csv of the step evaluate."""
    characteristics: pd.DataFrame
    """characteristics.csv of the step evaluate."""
    audit: pd.DataFrame
    """audit.csv of the step evaluate."""
    second_reading: pd.DataFrame
    """second_reading.csv of the step evaluate."""
    comparison: pd.DataFrame
    """comparison.csv of the step evaluate; no rows if no earlier model was accepted."""
    gallery: Gallery
    """gallery.json of the step explain."""
    pictures: Mapping[str, bytes]
    """The pictures of the step explain, by file name."""
    geometry: Geometry
    """geometry.json of the step explain."""
    confusion: pd.DataFrame
    """confusion.csv of the step explain."""
    robustness: Robustness
    """robustness.json of the step robustness; without parts if it is off."""
    versions: dict[str, str]
    """Package -> version; see `installed_versions`."""
    localisation: pd.DataFrame | None = None
    """localisation.csv of the step explain; None if there are no boxes."""

    @property
    def best_epoch(self) -> int:
        """The epoch of the weights, from 1 over all phases."""
        epoch = self.model.best_epoch
        assert epoch is not None, "the step train of this version writes it"
        return epoch

    @property
    def phantom(self) -> bool:
        """Whether any step used phantom images; one is enough to mark the whole report."""
        with_data = (self.metrics.data, self.calibration.data, self.gallery.data, self.geometry.data)
        phantom = self.validation.phantom or self.dataset.phantom or self.model.phantom
        return phantom or "phantom" in with_data

    @property
    def images(self) -> bool:
        """Whether images may be shown."""
        return self.params.report.show_images and self.gallery.images


def render(inputs: Inputs) -> str:
    """Render the report as HTML; the run is filled in by the file `RUN_FILE` beside it."""
    rows = rows_of(inputs.findings)
    metrics, config = inputs.metrics, inputs.params.evaluate
    compared = read_rows(inputs.comparison, ComparisonRow)
    operating = read_rows(inputs.operating, OperatingRow)
    audited = audit.audit(read_rows(inputs.audit, AuditRow))
    selected = gallery.select(inputs.gallery, inputs.calibration, config.threshold.rule)
    page = (
        environment()
        .get_template("report.html")
        .render(
            title=inputs.params.report.title,
            browser_title=marked(inputs.params.report.title, inputs.phantom, " – "),
            phantom=inputs.phantom,
            macros="macros.html",
            head="head.html",
            stylesheet="report.css",
            first_screen="overview.html",
            robustness_section="robustness.html",
            robustness=robustness.section(inputs.robustness, inputs.phantom),
            run_file=RUN_FILE,
            scripts=[Markup(script) for script in scripts.SCRIPTS],
            script_policy=Markup(scripts.policy()),
            wording=wording,
            metrics=metrics,
            config=config,
            facts=overview.facts(inputs.params.data.source, inputs.phantom, inputs.dataset, inputs.model),
            headline=overview.headline(metrics, rows, compared),
            comparison_summary=comparison.summary_sentence(compared, metrics.confidence),
            empty_tiers=_empty_tiers(metrics, rows),
            without_curves=[row.finding for row in rows if not wording.known(row.value("auroc"))],
            audit=audited,
            audit_summary=audit.summary_sentence(audited, metrics.confidence),
            rules=calibration.rules(config.threshold),
            gallery=_gallery(inputs, selected, operating) if inputs.images else None,
            localisation=localisation.section(
                inputs.localisation, [row.finding for row in rows], inputs.phantom
            ),
            geometry=inputs.geometry,
            directions=network.directions(inputs.geometry)[0],
            parameters=inputs.params,
            show_images=inputs.params.report.show_images,
            confidence=metrics.percent,
            plots=_plots(inputs, rows, compared),
            tables={
                **_result_tables(inputs, rows),
                "operating": _operating(inputs, operating, rows),
                "comparison": comparison.tables_of(compared, [row.finding for row in rows]),
                "gallery": gallery.listed(selected),
                "review": None if inputs.gallery.review is None else gallery.review(inputs.gallery.review),
                **_input_tables(inputs, rows),
            },
            failed=[check for check in inputs.validation.checks if not check.passed],
            checks=len(inputs.validation.checks),
        )
    )
    return with_digest(page)


def environment() -> jinja2.Environment:
    """Templates of this folder, in which text from data is escaped."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def installed_versions() -> dict[str, str]:
    """Installed versions of Python and `PACKAGES`."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def rows_of(findings: pd.DataFrame) -> list[FindingRow]:
    """The rows of findings.csv, the most frequent in training first."""
    return sorted(read_rows(findings, FindingRow), key=lambda row: (-row.train_prevalence, row.finding))


def _result_tables(inputs: Inputs, rows: list[FindingRow]) -> dict[str, tables.Table | None]:
    """The tables about the results, by name."""
    readings = read_rows(inputs.second_reading, ReadingRow)
    return {
        "tiers": tables.tiers(inputs.metrics, rows),
        "cxr_lt": tables.cxr_lt(inputs.metrics),
        "findings": tables.findings(rows),
        "curves": tables.curve_points(inputs.curves, rows),
        "calibration": calibration.maps(rows),
        "bins": calibration.bins(inputs.reliability, rows),
        "decision_curves": calibration.net_benefits(inputs.decision_curves, rows),
        "second_reading": tables.second_reading(readings) if readings else None,
        "confused": network.confused(inputs.confusion, inputs.params.evaluate.min_positives),
        **_geometry(inputs.geometry),
    }


def _input_tables(inputs: Inputs, rows: list[FindingRow]) -> dict[str, tables.Table]:
    """The tables about training, data, parameters and versions, by name."""
    characteristics = read_rows(inputs.characteristics, CharacteristicsRow)
    return {
        "model": tables.model(inputs.model, len(inputs.history)),
        "history": tables.history(inputs.history, inputs.best_epoch),
        "images": data_tables.images(inputs.validation, inputs.dataset),
        "notes": data_tables.notes(inputs.dataset),
        "same_images": data_tables.same_images(inputs.dataset),
        "split": data_tables.split(inputs.dataset),
        "characteristics": data_tables.characteristics(characteristics),
        "labels": data_tables.labels(inputs.class_counts, rows),
        "checks": data_tables.checks(inputs.validation),
        "changed": overview.changed_parameters(inputs.params),
        "parameters": tables.parameters(inputs.params.model_dump()),
        "hashes": data_tables.hashes(inputs.validation, inputs.dataset),
        "versions": tables.versions(inputs.versions),
    }


def _gallery(
    inputs: Inputs, selected: list[gallery.Selected], operating: list[OperatingRow]
) -> gallery.ShownGallery:
    rule = inputs.params.evaluate.threshold.rule
    chosen = [row for row in operating if row.rule == rule]
    return gallery.gallery(inputs.gallery, selected, chosen, inputs.pictures, inputs.phantom)


def _operating(
    inputs: Inputs, operating: list[OperatingRow], rows: list[FindingRow]
) -> dict[str, tables.Table]:
    """A table per rule, the rule of the parameters first."""
    threshold = inputs.params.evaluate.threshold
    rules = calibration.rules(threshold)
    return {
        rule: calibration.operating(operating, rows, rule, f"Test metrics, with thresholds for {rules[rule]}")
        for rule in sorted(rules, key=lambda rule: rule != threshold.rule)
    }


def _geometry(geometry: Geometry) -> dict[str, tables.Table]:
    """Tables of geometry.json; empty if the network has no features to analyse."""
    if geometry.not_available is not None:
        return {}
    return {
        "halves": network.halves(geometry),
        "cosines": network.cosines(geometry),
        "spread": network.spread(geometry.findings),
    }


def _empty_tiers(metrics: Metrics, rows: list[FindingRow]) -> dict[str, str]:
    """Tiers without a mean, and why."""
    return {
        name: "none of its findings is estimable"
        if any(row.tier == name for row in rows)
        else "no finding is in this tier"
        for name, mean in metrics.tiers.items()
        if not mean.findings
    }


@dataclass(frozen=True)
class FindingPlot:
    """A plot of one finding."""

    row: FindingRow
    svg: Markup


def finding_plots(
    name: str,
    table: pd.DataFrame,
    rows: Sequence[FindingRow],
    draw: Callable[[str, FindingRow, pd.DataFrame, bool], str],
    phantom: bool,
) -> list[FindingPlot]:
    """A plot per finding that a table has points of.

    Args:
        name: prefix of the ids of the plots.
        table: has a column `finding`.
        rows: of findings.csv.
        draw: draws a finding: id, its row, its points, whether to draw the watermark.
        phantom: whether to draw the watermark.
    """
    parts = [(index, row, table[table["finding"] == row.finding]) for index, row in enumerate(rows)]
    return [
        FindingPlot(row, Markup(draw(f"{name}{index}", row, part, phantom)))
        for index, row, part in parts
        if len(part)
    ]


def _plots(inputs: Inputs, rows: list[FindingRow], compared: list[ComparisonRow]) -> dict[str, Any]:
    """SVG elements by name, marked as safe because plots escapes text from data."""
    phantom, config, geometry = inputs.phantom, inputs.params.evaluate, inputs.geometry
    names = [row.finding for row in rows]
    return {
        "comparison": Markup(comparison.forest(compared, names, phantom)) if compared else None,
        "reliability": finding_plots(
            "reliability", inputs.reliability, rows, calibration.reliability, phantom
        ),
        "decision_curves": finding_plots(
            "decision", inputs.decision_curves, rows, calibration.decision_curve, phantom
        ),
        "cosines": None
        if geometry.not_available is not None
        else Markup(network.heat("cosines", geometry, phantom)),
        "ap": Markup(plots.forest("ap", "ap", rows, None, phantom)),
        "auroc": Markup(plots.forest("auroc", "auroc", rows, 0.5, phantom)),
        "curves": finding_plots("curve", inputs.curves, rows, plots.curve_pair, phantom),
        "epochs": _epochs(inputs.history, inputs.best_epoch, phantom),
        "flow": Markup(flow.flow("flow", inputs.validation, inputs.dataset, inputs.metrics.test, phantom)),
        "prevalences": Markup(plots.prevalences("prevalence", rows, config.head, config.tail, phantom)),
    }


def _epochs(history: pd.DataFrame, best: int, phantom: bool) -> list[Markup]:
    """Loss and validation metrics by epoch."""
    titles = {
        "train_loss": "Training loss",
        "val_macro_ap": "Validation macro AP",
        "val_macro_auroc": "Validation macro AUROC",
    }
    numbers = [int(epoch) for epoch in history["epoch"]]
    return [
        Markup(
            plots.epochs(
                column.replace("_", ""),
                title,
                numbers,
                list(history[column]),
                list(history.get("ema_" + column, [])),
                best,
                phantom,
            )
        )
        for column, title in titles.items()
    ]
