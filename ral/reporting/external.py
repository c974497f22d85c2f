"""The page of an external validation: a model on other data; the same inputs give the same bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from markupsafe import Markup

from ral import wording
from ral.config.evaluate import EvaluateConfig
from ral.evaluation.external import ExternalValidation
from ral.evaluation.results import Metrics
from ral.evaluation.table_rows import AuditRow, CharacteristicsRow, FindingRow, OperatingRow, read_rows
from ral.labels import marked
from ral.reporting import audit, calibration, data_tables, overview, plots, scripts, tables
from ral.reporting.report import environment, finding_plots, rows_of
from ral.reporting.tables import Table
from ral.wording import difference, number

TEMPLATE = "external.html"


def render(
    metrics: Metrics,
    described: ExternalValidation,
    results: Mapping[str, pd.DataFrame],
    config: EvaluateConfig,
    notes: Sequence[str],
) -> str:
    """Render the page as HTML.

    Args:
        metrics: content of metrics.json but `external_validation`.
        described: `external_validation` of metrics.json.
        results: table by file name, see `ral.external.run.tables_of`.
        config: how the model was evaluated.
        notes: what a person must know about this evaluation, a sentence each.
    """
    phantom = metrics.phantom
    title = f"External validation on {described.data.name}"
    rows = rows_of(results["findings.csv"])
    audited = audit.audit(read_rows(results["audit.csv"], AuditRow))
    rule = config.threshold.rule
    rules = calibration.rules(config.threshold)
    return environment().get_template(TEMPLATE).render(
        macros="macros.html", head="head.html", run_file=None,
        stylesheet="report.css",
        title=title, browser_title=marked(title, phantom, " – "),
        phantom=phantom,
        wording=wording,
        metrics=metrics,
        config=config,
        facts=facts(metrics, described),
        headline=headline(metrics, rows),
        notes=notes,
        confidence=metrics.percent,
        resampled="patients" if described.data.patients_known else "images",
        rule=rules[rule],
        audit=audited,
        audit_summary=audit.summary_sentence(audited, metrics.confidence),
        scripts=[Markup(script) for script in scripts.SCRIPTS],
        script_policy=Markup(scripts.policy()),
        plots=_plots(results, rows, phantom),
        tables={
            "tiers": tables.tiers(metrics, rows),
            "cxr_lt": tables.cxr_lt(metrics),
            "findings": _captioned(
                tables.findings(rows), "Metrics of every finding, the most frequent in training first"
            ),
            "gaps": gaps(results["calibration.csv"], rows),
            "calibration": _captioned(calibration.maps(rows), "Calibration of every finding on these images"),
            "bins": calibration.bins(results["reliability.csv"], rows),
            "operating": calibration.operating(
                read_rows(results["operating.csv"], OperatingRow), rows, rule,
                f"Metrics at the released thresholds ({rules[rule]})",
            ),
            "decision_curves": calibration.net_benefits(results["decision_curves.csv"], rows),
            "characteristics": characteristics(read_rows(results["characteristics.csv"], CharacteristicsRow)),
            "excluded": excluded(described.data.excluded),
        },
    )  # fmt: skip


def facts(metrics: Metrics, described: ExternalValidation) -> dict[str, str]:
    """Model, its training data, the data and their size, by name."""
    model, data, findings = described.model, described.data, described.findings
    split = f", split {data.split}" if data.split else ""
    trained = f"phantom images in the layout of {model.source}" if model.phantom else model.source
    of_model = len(findings.evaluated) + len(findings.not_labelled)
    return {
        "Model": model.name,
        "Trained on": trained,
        "Evaluated on": f"{data.name} (layout {data.source}{split}{', PHANTOM' if data.phantom else ''})",
        "Images": f"{metrics.test.rows:,}",
        "Patients": f"{metrics.test.patients:,}" if data.patients_known else "not known",
        "Findings": f"{len(findings.evaluated)} of the {of_model} of the model",
        "Calibration and thresholds": f"as released ({model.calibration}, {model.threshold_rule})",
    }


def headline(metrics: Metrics, rows: Sequence[FindingRow]) -> list[overview.Headline]:
    """The means over all findings, as in the report of a run."""
    cards = overview.headline(metrics, rows, [])
    return [replace(card, note="released thresholds") if card.name == "Macro F1" else card for card in cards]


def gaps(table: pd.DataFrame, rows: Sequence[FindingRow]) -> Table:
    """Mean probability against the share of positives, and the calibration error, of every finding."""
    by_finding = {gap["finding"]: gap for gap in table.to_dict("records")}
    content = []
    for row in rows:
        gap = by_finding.get(row.finding)
        if gap is None:
            continue
        content.append(
            [
                row.finding,
                f"{int(gap['images']):,}",
                number(gap["mean_probability"]),
                number(gap["observed"]),
                difference(gap["difference"], gap["low"], gap["high"]),
                row.metrics["ece"].text(),
                number(row.value("ece_debiased")),
            ]
        )
    return Table(
        "Released probabilities against the labels",
        ("Finding", "Images", "Mean probability", "Share positive", "Difference", "ECE", "Debiased ECE"),
        "lrrrrrr",
        content,
    )


def characteristics(rows: Sequence[CharacteristicsRow]) -> Table:
    """Sex, age, view and findings of the images."""
    content = []
    for row in rows:
        name = data_tables.ATTRIBUTES.get(row.attribute, "All")
        images = f"{row.images:,} of {row.of:,}"
        if row.attribute == "age_years" and wording.known(row.median):
            images += f"; median {row.median:g} ({row.q1:g}–{row.q3:g})"
        share = wording.percent(row.share) if wording.known(row.share) else ""
        content.append([name, row.group, images, share, f"{row.patients:,}"])
    return Table("The images", ("What", "Group", "Images", "Share", "Patients"), "llrrr", content)


def excluded(reasons: Mapping[str, int]) -> Table:
    """Rows that were not evaluated, by reason."""
    return Table(
        "Rows that were not evaluated; excluded.csv lists them",
        ("Reason", "Rows"),
        "wr",
        [[reason, f"{count:,}"] for reason, count in reasons.items()],
    )


def _captioned(table: Table, caption: str) -> Table:
    """These images are no test images of the training data."""
    columns = tuple("Positive images" if name == "Test positives" else name for name in table.columns)
    return replace(table, caption=caption, columns=columns)


def _plots(results: Mapping[str, pd.DataFrame], rows: list[FindingRow], phantom: bool) -> dict[str, Any]:
    """SVG elements by name, marked as safe because plots escapes text from data."""
    bins = results["reliability.csv"]
    return {
        "ap": Markup(plots.forest("ap", "ap", rows, None, phantom)),
        "auroc": Markup(plots.forest("auroc", "auroc", rows, 0.5, phantom)),
        "curves": finding_plots("curve", results["curves.csv"], rows, plots.curve_pair, phantom),
        "reliability": finding_plots("reliability", bins, rows, calibration.reliability, phantom),
    }
