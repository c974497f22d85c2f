"""Turn what the steps wrote into one self-contained HTML page; the same inputs give the same bytes."""

import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from ral.config.params import ReportParams
from ral.reporting import plots, tables, wording

# Packages whose version can change a figure of the report.
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
    """What the steps before wrote."""

    params: ReportParams
    verdict: dict[str, Any]
    """verdict.json of the step validate."""
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
    versions: dict[str, str]
    """Package -> version; see `installed_versions`."""

    @property
    def phantom(self) -> bool:
        """Whether any step saw phantom films: one is enough to mark the whole report."""
        return self.metrics["data"] == "phantom" or any(
            facts["phantom"] for facts in (self.verdict, self.dataset, self.model)
        )


def render(inputs: Inputs) -> str:
    """The report as HTML."""
    rows = _rows(inputs.findings)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    metrics, config = inputs.metrics, inputs.params.evaluate
    best = int(inputs.model["best_epoch"])
    return environment.get_template("report.html").render(
        title=inputs.params.report.title,
        phantom=inputs.phantom,
        wording=wording,
        metrics=metrics,
        config=config,
        headline=_headline(metrics, rows),
        empty_tiers=_empty_tiers(metrics, rows),
        without_curves=[row["finding"] for row in rows if not wording.known(row["auroc"])],
        confidence=f"{100 * metrics['confidence']:g} %",
        plots=_plots(inputs, rows, best),
        tables={
            "tiers": tables.tiers(metrics, rows),
            "findings": tables.findings(rows),
            "curves": tables.curve_points(inputs.curves, rows),
            "model": tables.model(inputs.model, len(inputs.history)),
            "history": tables.history(inputs.history, best),
            "films": tables.films(inputs.verdict, inputs.dataset),
            "split": tables.split(inputs.dataset),
            "labels": tables.labels(inputs.class_counts, rows),
            "checks": tables.checks(inputs.verdict),
            "parameters": tables.parameters(inputs.params.model_dump()),
            "hashes": tables.hashes(inputs.verdict, inputs.dataset),
            "versions": tables.versions(inputs.versions),
        },
        failed=[check for check in inputs.verdict["checks"] if not check["passed"]],
        checks=len(inputs.verdict["checks"]),
    )


def installed_versions() -> dict[str, str]:
    """Versions of Python and of `PACKAGES` in this environment."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _rows(findings: pd.DataFrame) -> list[plots.Row]:
    """The rows of findings.csv, the most frequent in training first."""
    rows: list[plots.Row] = [{str(k): v for k, v in row.items()} for row in findings.to_dict("records")]
    return sorted(rows, key=lambda row: (-row["train_prevalence"], row["finding"]))


def _headline(metrics: dict[str, Any], rows: list[plots.Row]) -> list[dict[str, str]]:
    """The means over all findings, each with what chance would give and over how many findings it is."""
    scored = [plots.prevalence(row) for row in rows if wording.known(row["ap"])]
    chances = {
        "ap": f"chance level {sum(scored) / len(scored):.3f}" if scored else "",
        "auroc": "chance level 0.500",
        "f1": "thresholds chosen on validation",
    }
    return [
        {
            "name": f"Macro {metric.upper()}",
            "value": wording.number(metrics["macro"][metric]["value"]),
            "interval": wording.interval(metrics["macro"][metric]["low"], metrics["macro"][metric]["high"]),
            "chance": chance,
            "findings": wording.counted(
                sum(wording.known(row[metric]) for row in rows), "finding", "findings"
            ),
        }
        for metric, chance in chances.items()
    ]


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
    """SVG elements by place, marked as safe: plots escapes what comes from data."""
    history, phantom = inputs.history, inputs.phantom
    epochs = [int(epoch) for epoch in history["epoch"]]
    curves = []
    for place, row in enumerate(rows):
        roc, pr = (tables.points(inputs.curves, row["finding"], kind) for kind in ("roc", "pr"))
        if len(roc[0]) and len(pr[0]):
            svg = plots.curve_pair(f"curve{place}", row, roc, pr, phantom)
            curves.append({"row": row, "svg": Markup(svg)})
    return {
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
                    list(history.get("average_" + column, [])),
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
        "prevalences": Markup(
            plots.prevalences(
                "prevalence", rows, inputs.params.evaluate.head, inputs.params.evaluate.tail, phantom
            )
        ),
    }
