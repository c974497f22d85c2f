"""Render the outputs of the steps as one self-contained HTML page; the same inputs give the same bytes."""

import importlib.metadata
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from ral import wording
from ral.config.params import ReportParams
from ral.reporting import (
    audit,
    calibration,
    comparison,
    data_tables,
    flow,
    gallery,
    network,
    overview,
    plots,
    scripts,
    tables,
)
from ral.reporting.run_info import RUN_FILE, with_digest

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
    validation: dict[str, Any]
    """validation.json of the step validate."""
    dataset: dict[str, Any]
    """dataset.json of the step preprocess."""
    class_counts: dict[str, Any]
    """class_counts.json of the step preprocess."""
    model: dict[str, Any]
    """model.json of the step train."""
    history: pd.DataFrame
    """history.csv of the step train."""
    metrics: dict[str, Any]
    """metrics.json of the step evaluate."""
    findings: pd.DataFrame
    """findings.csv of the step evaluate."""
    curves: pd.DataFrame
    """curves.csv of the step evaluate."""
    calibration: dict[str, Any]
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
    gallery: dict[str, Any]
    """gallery.json of the step explain."""
    pictures: Mapping[str, bytes]
    """The pictures of the step explain, by file name."""
    geometry: dict[str, Any]
    """geometry.json of the step explain."""
    confusion: pd.DataFrame
    """confusion.csv of the step explain."""
    versions: dict[str, str]
    """Package -> version; see `installed_versions`."""

    @property
    def phantom(self) -> bool:
        """Whether any step used phantom images; one is enough to mark the whole report."""
        with_data = (self.metrics, self.calibration, self.gallery, self.geometry)
        return any(content["data"] == "phantom" for content in with_data) or any(
            content["phantom"] for content in (self.validation, self.dataset, self.model)
        )

    @property
    def images(self) -> bool:
        """Whether images may be shown."""
        return self.params.report.show_images and self.gallery["images"]


def render(inputs: Inputs) -> str:
    """Render the report as HTML; the run is filled in by the file `RUN_FILE` beside it."""
    rows = rows_of(inputs.findings)
    metrics, config = inputs.metrics, inputs.params.evaluate
    best = int(inputs.model["best_epoch"])
    audited = audit.audit(inputs.audit)
    selected = gallery.select(inputs.gallery, inputs.calibration, config.threshold.rule)
    chosen = inputs.operating[inputs.operating["rule"] == config.threshold.rule]
    page = (
        environment()
        .get_template("report.html")
        .render(
            title=inputs.params.report.title,
            phantom=inputs.phantom,
            macros="macros.html",
            stylesheet="report.css",
            first_screen="overview.html",
            run_file=RUN_FILE,
            scripts=[Markup(script) for script in scripts.SCRIPTS],
            script_policy=Markup(scripts.policy()),
            wording=wording,
            metrics=metrics,
            config=config,
            facts=overview.facts(inputs.params.data.source, inputs.phantom, inputs.dataset, inputs.model),
            headline=overview.headline(metrics, rows, inputs.comparison),
            comparison_summary=comparison.summary_sentence(inputs.comparison, metrics["confidence"]),
            empty_tiers=_empty_tiers(metrics, rows),
            without_curves=[row["finding"] for row in rows if not wording.known(row["auroc"])],
            audit=audited,
            audit_summary=audit.summary_sentence(audited, metrics["confidence"]),
            rules=calibration.rules(config.threshold),
            gallery=gallery.gallery(inputs.gallery, selected, chosen, inputs.pictures, inputs.phantom)
            if inputs.images
            else None,
            geometry=inputs.geometry,
            directions=None if "not_available" in inputs.geometry else network.directions(inputs.geometry)[1],
            parameters=inputs.params,
            show_images=inputs.params.report.show_images,
            confidence=f"{100 * metrics['confidence']:g} %",
            plots=_plots(inputs, rows, best),
            tables={
                "tiers": tables.tiers(metrics, rows),
                "cxr_lt": tables.cxr_lt(metrics),
                "findings": tables.findings(rows),
                "calibration": calibration.maps(rows),
                "bins": calibration.bins(inputs.reliability, rows),
                "operating": _operating(inputs, rows),
                "decision_curves": calibration.net_benefits(inputs.decision_curves, rows),
                "second_reading": tables.second_reading(inputs.second_reading)
                if len(inputs.second_reading)
                else None,
                "comparison": comparison.tables_of(inputs.comparison, [row["finding"] for row in rows]),
                "confused": network.confused(inputs.confusion, config.min_positives),
                "gallery": gallery.listed(selected),
                **_geometry(inputs.geometry),
                "curves": tables.curve_points(inputs.curves, rows),
                "model": tables.model(inputs.model, len(inputs.history)),
                "history": tables.history(inputs.history, best),
                "images": data_tables.images(inputs.validation, inputs.dataset),
                "notes": data_tables.notes(inputs.dataset),
                "same_images": data_tables.same_images(inputs.dataset),
                "split": data_tables.split(inputs.dataset),
                "characteristics": data_tables.characteristics(inputs.characteristics),
                "labels": data_tables.labels(inputs.class_counts, rows),
                "checks": data_tables.checks(inputs.validation),
                "changed": overview.changed_parameters(inputs.params),
                "parameters": tables.parameters(inputs.params.model_dump()),
                "hashes": data_tables.hashes(inputs.validation, inputs.dataset),
                "versions": tables.versions(inputs.versions),
            },
            failed=[check for check in inputs.validation["checks"] if not check["passed"]],
            checks=len(inputs.validation["checks"]),
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


def _operating(inputs: Inputs, rows: list[plots.Row]) -> dict[str, tables.Table]:
    """A table per rule, the rule of the parameters first."""
    threshold = inputs.params.evaluate.threshold
    rules = calibration.rules(threshold)
    return {
        rule: calibration.operating(
            inputs.operating, rows, rule, f"Test metrics, with thresholds for {rules[rule]}"
        )
        for rule in sorted(rules, key=lambda rule: rule != threshold.rule)
    }


def _geometry(geometry: dict[str, Any]) -> dict[str, tables.Table]:
    """Tables of geometry.json; empty if the network has no features to analyse."""
    if "not_available" in geometry:
        return {}
    return {
        "halves": network.halves(geometry),
        "cosines": network.cosines(geometry),
        "spread": network.spread(geometry["findings"]),
    }


def rows_of(findings: pd.DataFrame) -> list[plots.Row]:
    """The rows of findings.csv, the most frequent in training first."""
    return sorted(tables.records(findings), key=lambda row: (-row["train_prevalence"], row["finding"]))


def _empty_tiers(metrics: dict[str, Any], rows: list[plots.Row]) -> dict[str, str]:
    """Tiers without a mean, and why."""
    return {
        name: "none of its findings is estimable"
        if any(row["tier"] == name for row in rows)
        else "no finding is in this tier"
        for name, mean in metrics["tiers"].items()
        if not mean["findings"]
    }


def _plots(inputs: Inputs, rows: list[plots.Row], best: int) -> dict[str, Any]:
    """SVG elements by name, marked as safe because plots escapes text from data."""
    history, phantom = inputs.history, inputs.phantom
    epochs = [int(epoch) for epoch in history["epoch"]]
    curves = []
    for index, row in enumerate(rows):
        roc, pr = (tables.points(inputs.curves, row["finding"], kind) for kind in ("roc", "pr"))
        if len(roc[0]) and len(pr[0]):
            svg = plots.curve_pair(f"curve{index}", row, roc, pr, phantom)
            curves.append({"row": row, "svg": Markup(svg)})
    reliability = []
    for index, row in enumerate(rows):
        bins = inputs.reliability[inputs.reliability["finding"] == row["finding"]]
        if len(bins):
            svg = calibration.reliability(f"reliability{index}", row, bins, phantom)
            reliability.append({"row": row, "svg": Markup(svg)})
    decisions = []
    for index, row in enumerate(rows):
        points = inputs.decision_curves[inputs.decision_curves["finding"] == row["finding"]]
        if len(points):
            svg = calibration.decision_curve(f"decision{index}", row, points, phantom)
            decisions.append({"row": row, "svg": Markup(svg)})
    return {
        "comparison": Markup(comparison.forest(inputs.comparison, [row["finding"] for row in rows], phantom))
        if len(inputs.comparison)
        else None,
        "reliability": reliability,
        "decision_curves": decisions,
        "cosines": None
        if "not_available" in inputs.geometry
        else Markup(network.heat("cosines", inputs.geometry, phantom)),
        "ap": Markup(plots.forest("ap", "ap", rows, None, phantom)),
        "auroc": Markup(plots.forest("auroc", "auroc", rows, 0.5, phantom)),
        "curves": curves,
        "epochs": [
            Markup(
                plots.epochs(
                    column.replace("_", ""),
                    label,
                    epochs,
                    list(history[column]),
                    list(history.get("ema_" + column, [])),
                    best,
                    phantom,
                )
            )
            for column, label in (
                ("train_loss", "Training loss"),
                ("val_macro_ap", "Validation macro AP"),
                ("val_macro_auroc", "Validation macro AUROC"),
            )
        ],
        "flow": Markup(flow.flow("flow", inputs.validation, inputs.dataset, inputs.metrics["test"], phantom)),
        "prevalences": Markup(
            plots.prevalences(
                "prevalence", rows, inputs.params.evaluate.head, inputs.params.evaluate.tail, phantom
            )
        ),
    }
