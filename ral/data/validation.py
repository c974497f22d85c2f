"""Great Expectations on a source's raw rows, its films and their drift, reduced to one verdict."""

import os
from pathlib import Path
from typing import Any

import pandas as pd

# Great Expectations reads this when it is imported: usage statistics only for who asks for them.
os.environ.setdefault("GX_ANALYTICS_ENABLED", "False")

import great_expectations as gx
from great_expectations.checkpoint import UpdateDataDocsAction

from ral.config.data import DataConfig
from ral.data import drift
from ral.data.sources.base import Layout
from ral.data.suite import (
    added_columns,
    drift_expectations,
    name_the_nearest,
    raw_expectations,
)

# Rows shown of what broke a check.
SAMPLES = 5


def check_table(
    raw: pd.DataFrame,
    films: pd.DataFrame,
    layout: Layout,
    config: DataConfig,
    docs: Path,
    differences: pd.DataFrame | None = None,
) -> list[dict[str, Any]]:
    """Run the expectations and write Data Docs.

    Args:
        raw: the raw rows of a source as text, with `row`.
        films: image_id and bytes of every film found.
        layout: what the columns of `raw` mean.
        config: `data.missing_films` and `data.drift`.
        docs: folder for the Data Docs; they carry run times, so it is no DVC output.
        differences: from the accepted profile (`ral.data.drift.compare`); None where none is accepted.

    Returns:
        One dict per check: check, column, severity (error or warning), passed, unexpected (rows), samples
        ({row, image_id, value}) and remedy.
    """
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
    context.add_data_docs_site(
        site_name="docs",
        site_config={
            "class_name": "SiteBuilder",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {
                "class_name": "TupleFilesystemStoreBackend",
                "base_directory": str(docs.resolve()),
            },
        },
    )
    table = added_columns(raw.reset_index(drop=True), layout, films)
    results = _run(context, "raw_label_table", table, raw_expectations(layout, config.missing_films))
    checks = [_reduce(item, table, layout) for item in results]
    if differences is not None:
        told = drift.describe(differences, config.drift)
        results = _run(context, "accepted_profile", differences, drift_expectations(config.drift, told))
        checks += [_reduce(item, None, layout) for item in results]
    return checks


def _run(context: Any, name: str, table: pd.DataFrame, expectations: list[Any]) -> list[dict[str, Any]]:
    """Great Expectations' results on a table, in the order of the expectations."""
    batch = (
        context.data_sources.add_pandas(name)
        .add_dataframe_asset("rows")
        .add_batch_definition_whole_dataframe("all")
    )
    suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=expectations))
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(name=name, data=batch, suite=suite)
    )
    checkpoint = gx.Checkpoint(
        name=name,
        validation_definitions=[definition],
        actions=[UpdateDataDocsAction(name="docs", site_names=["docs"])],
        # Rows are named by their place: looking up columns for each of 100,000 unexpected rows takes many seconds.
        result_format={"result_format": "SUMMARY", "partial_unexpected_count": SAMPLES},
    )
    outcome = context.checkpoints.add(checkpoint).run(batch_parameters={"dataframe": table})
    (result,) = outcome.run_results.values()
    order = [expectation.meta["check"] for expectation in expectations]
    items = [item.to_json_dict() for item in result.results]
    return sorted(items, key=lambda item: order.index(item["expectation_config"]["meta"]["check"]))


def _reduce(item: dict[str, Any], table: pd.DataFrame | None, layout: Layout) -> dict[str, Any]:
    """What a reader needs of one of Great Expectations' results, without its run ids and times."""
    config, result = item["expectation_config"], item["result"]
    crashes = [info for info in _exceptions(item["exception_info"]) if info.get("raised_exception")]
    if crashes:
        raise RuntimeError(f"{config['meta']['check']}: {crashes[0]['exception_traceback']}")
    kwargs, meta = config["kwargs"], config["meta"]
    column = meta["shown"] or " + ".join(kwargs["column_list"])
    samples = []
    if table is not None:
        for place in (result.get("partial_unexpected_index_list") or [])[:SAMPLES]:
            row = table.iloc[place]
            # A derived column is shown by the cell that it was made from, where there is one.
            cell = column if column in table.columns else kwargs.get("column", "")
            samples.append(
                {"row": int(row["row"]), "image_id": row[layout.image], "value": _text(row.get(cell))}
            )
    remedy = meta["remedy"]
    if not item["success"] and kwargs.get("column") == "label_problem":
        remedy = name_the_nearest([sample["value"] or "" for sample in samples], layout) + remedy
    if item["success"] and table is None:
        remedy = ""
    return {
        "check": meta["check"],
        "column": column,
        "severity": "error" if config["severity"] == "critical" else "warning",
        "passed": item["success"],
        "unexpected": result["unexpected_count"],
        "samples": samples,
        "remedy": remedy,
    }


def _exceptions(info: dict[str, Any]) -> list[dict[str, Any]]:
    """Great Expectations gives one exception record, or a dict of them by metric."""
    return [info] if "raised_exception" in info else list(info.values())


def _text(value: Any) -> str | None:
    return None if value is None or value != value else str(value)
