"""Great Expectations on the raw label table and its films, reduced to one verdict."""

import os
from pathlib import Path
from typing import Any

import pandas as pd

# Great Expectations reads this when it is imported: usage statistics only for who asks for them.
os.environ.setdefault("GX_ANALYTICS_ENABLED", "False")

import great_expectations as gx
import great_expectations.expectations as gxe
from great_expectations.checkpoint import UpdateDataDocsAction

from ral.data.sources import nih
from ral.labels import NO_FINDING

# Rows shown of what broke a check.
SAMPLES = 5


def expectations(missing_films: str) -> list[Any]:
    """What must hold of the label table; severity critical stops the run, warning goes to the report.

    Each carries in `meta` a short name and what to do when it fails. The table is the raw one with the columns
    row (line in the file), film_bytes (null without a film) and age (a number or null) added.
    """
    words = "|".join(nih.VOCABULARY)
    checks: list[tuple[Any, dict[str, Any], tuple[str, str, str]]] = [
        (
            gxe.ExpectColumnValuesToMatchRegex,
            {"column": "Image Index", "regex": r"^[^/\\]+\.(?:png|jpg|jpeg)$"},
            ("image id is a file name", "critical", "Correct the image id in that row."),
        ),
        (
            gxe.ExpectColumnValuesToBeUnique,
            {"column": "Image Index"},
            ("image ids are unique", "critical", "Keep one row per film."),
        ),
        (
            gxe.ExpectColumnValuesToMatchRegex,
            {"column": "Finding Labels", "regex": rf"^(?:{words})(?:\|(?:{words}))*$"},
            (
                "labels are in the vocabulary",
                "critical",
                f"Allowed, joined by |: {', '.join(nih.VOCABULARY)}.",
            ),
        ),
        (
            gxe.ExpectColumnValuesToNotMatchRegex,
            {"column": "Finding Labels", "regex": rf"{NO_FINDING}\||\|{NO_FINDING}"},
            (f"{NO_FINDING} stands alone", "critical", f"Remove {NO_FINDING} from rows that have a finding."),
        ),
        (
            gxe.ExpectColumnValuesToMatchRegex,
            {"column": "Follow-up #", "regex": r"^\d+$"},
            ("follow-up is a number", "critical", "Write it as a whole number from 0."),
        ),
        (
            gxe.ExpectCompoundColumnsToBeUnique,
            {"column_list": ["Patient ID", "Follow-up #"]},
            ("follow-ups of a patient are distinct", "warning", "Number a patient's films 0, 1, 2, …"),
        ),
        (
            gxe.ExpectColumnValuesToMatchRegex,
            {"column": "Patient ID", "regex": r"^(?:0|[1-9]\d*)$"},
            (
                "patient id is a plain number",
                "critical",
                "Write it without zeros in front: one person under two spellings could both train and test.",
            ),
        ),
        (
            gxe.ExpectColumnValuesToMatchRegex,
            {"column": "Patient Age", "regex": r"^\d+$"},
            ("age is a number", "critical", "Write the age in whole years."),
        ),
        (
            gxe.ExpectColumnValuesToBeBetween,
            {"column": "age", "min_value": 0, "max_value": nih.OLDEST},
            ("age is possible", "warning", "Such ages are taken as unknown."),
        ),
        (
            gxe.ExpectColumnValuesToBeInSet,
            {"column": "Patient Gender", "value_set": ["M", "F"]},
            ("sex is M or F", "critical", "Write M or F."),
        ),
        (
            gxe.ExpectColumnValuesToBeInSet,
            {"column": "View Position", "value_set": list(nih.VIEWS)},
            ("view is known", "critical", f"Write one of {', '.join(nih.VIEWS)}."),
        ),
        (
            gxe.ExpectColumnValuesToNotBeNull,
            {"column": "film_bytes"},
            (
                "film is present",
                "critical" if missing_films == "fail" else "warning",
                "Add the films, or set data.missing_films to drop to go on without those rows.",
            ),
        ),
        (
            gxe.ExpectColumnValuesToBeBetween,
            {"column": "film_bytes", "min_value": 1},
            ("film is not empty", "critical", "Get that film again from its owner."),
        ),
    ]
    return [
        kind(**kwargs, severity=severity, meta={"check": name, "remedy": remedy})
        for kind, kwargs, (name, severity, remedy) in checks
    ]


def check_table(
    raw: pd.DataFrame, films: pd.DataFrame, missing_films: str, docs: Path
) -> list[dict[str, Any]]:
    """Run the expectations and write Data Docs.

    Args:
        raw: the label table as text.
        films: image_id and bytes of every film found.
        missing_films: `data.missing_films`.
        docs: folder for the Data Docs; they carry run times, so it is no DVC output.

    Returns:
        One dict per check, in the order of `expectations`: check, column, severity (error or warning), passed,
        unexpected (rows), samples ({row, image_id, value}) and remedy.
    """
    table = raw.assign(
        row=range(2, len(raw) + 2),  # line 1 is the header
        film_bytes=raw["Image Index"].map(films.set_index("image_id")["bytes"]).astype("float64"),
        age=pd.to_numeric(raw["Patient Age"], errors="coerce"),
    )
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
    batch = (
        context.data_sources.add_pandas("label_table")
        .add_dataframe_asset("rows")
        .add_batch_definition_whole_dataframe("all")
    )
    wanted = expectations(missing_films)
    suite = context.suites.add(gx.ExpectationSuite(name="raw_label_table", expectations=wanted))
    definition = context.validation_definitions.add(
        gx.ValidationDefinition(name="raw_label_table", data=batch, suite=suite)
    )
    checkpoint = gx.Checkpoint(
        name="raw_label_table",
        validation_definitions=[definition],
        actions=[UpdateDataDocsAction(name="docs", site_names=["docs"])],
        result_format={
            "result_format": "SUMMARY",
            "unexpected_index_column_names": ["row", "Image Index"],
            "partial_unexpected_count": SAMPLES,
        },
    )
    outcome = context.checkpoints.add(checkpoint).run(batch_parameters={"dataframe": table})
    (result,) = outcome.run_results.values()
    order = [expectation.meta["check"] for expectation in wanted]
    checks = [_reduce(item.to_json_dict()) for item in result.results]
    return sorted(checks, key=lambda check: order.index(check["check"]))


def _reduce(item: dict[str, Any]) -> dict[str, Any]:
    """What a reader needs of one of Great Expectations' results, without its run ids and times."""
    config, result = item["expectation_config"], item["result"]
    crashes = [info for info in _exceptions(item["exception_info"]) if info.get("raised_exception")]
    if crashes:
        raise RuntimeError(f"{config['meta']['check']}: {crashes[0]['exception_traceback']}")
    kwargs = config["kwargs"]
    column = kwargs.get("column") or " + ".join(kwargs["column_list"])
    return {
        "check": config["meta"]["check"],
        "column": column,
        "severity": "error" if config["severity"] == "critical" else "warning",
        "passed": item["success"],
        "unexpected": result["unexpected_count"],
        "samples": [
            {"row": sample["row"], "image_id": sample["Image Index"], "value": _value(sample, column)}
            for sample in result.get("partial_unexpected_index_list") or []
        ][:SAMPLES],
        "remedy": config["meta"]["remedy"],
    }


def _exceptions(info: dict[str, Any]) -> list[dict[str, Any]]:
    """Great Expectations gives one exception record, or a dict of them by metric."""
    return [info] if "raised_exception" in info else list(info.values())


def _value(sample: dict[str, Any], column: str) -> str | None:
    value = sample.get(column)
    return None if value is None or value != value else str(value)
