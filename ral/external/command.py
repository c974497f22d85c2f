"""Evaluate a model on another labelled set (external validation). Research software, not a medical device.

    ral evaluate --model champion --data labels.csv --images images/ -o external
    ral evaluate --model v0.2.0 --data /data/CheXpert-v1.0-small --source chexpert -o external
    ral evaluate --model . --data hospital.yaml -o external
    ral evaluate --model champion --data data/prepared --split test -o external

DATA is a table (.csv, .csv.gz, .parquet) with a row per image, an id of the image and of the patient, and a column per
finding (1, 0, -1 uncertain, empty unknown) named as in the model; or the folder of a published data set, with --source;
or a params.yaml whose section data describes any of these; or the output folder of the step preprocess.

The model is used as released: nothing is trained, and calibration and thresholds are not fitted again. The folder gets
report.html, metrics.json, tables per finding, predictions.csv, and excluded.csv with every row that was not evaluated.

Exit codes: 0 all rows were evaluated, or excluded by their view or as sealed patients of the model; 1 an error stopped
the run; 2 wrong usage; 3 some images are missing or cannot be used; 130 interrupted (Ctrl-C).
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ral.errors import UserError

if TYPE_CHECKING:
    from ral.evaluation.external import ExternalValidation
    from ral.evaluation.results import Metrics
    from ral.external.labelled import LabelledImages
    from ral.inference.released import ReleasedModel

SOURCES = ("nih", "chexpert", "mimic", "padchest", "vindr", "chestmnist")
SPLITS = ("all", "train", "val", "test")
# Options that describe the columns of a table.
COLUMNS = ("image_column", "patient_column", "without_patients")
SOME_BAD = 3

logger = logging.getLogger("ral.external")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        prog="ral evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = command.add_argument
    add("--model", required=True, help="folder of a model, `champion`, or a version such as v0.2.0")
    add("--data", type=Path, required=True, help="table, folder or params.yaml with the labels")
    add("-o", "--out", type=Path, required=True, metavar="FOLDER", help="folder to write")
    add(
        "--images",
        type=Path,
        metavar="FOLDER",
        help="images of a table, anywhere below it (the table's folder)",
    )
    add(
        "--image-column",
        metavar="COLUMN",
        help="path or file name of the image (image_id)",
    )
    patients = command.add_mutually_exclusive_group()
    patients.add_argument("--patient-column", metavar="COLUMN", help="id of the patient (patient_id)")
    patients.add_argument(
        "--without-patients", action="store_true", help="patients are not known: intervals are by image"
    )
    add("--source", choices=SOURCES, help="DATA is a folder as its publisher ships it (docs/sources.md)")
    add("--split", choices=SPLITS, help="images of a prepared set to evaluate (all)")
    add("--device", help="cpu, cuda or cuda:1 (a GPU if there is one)")
    add("--workers", type=int, help="threads that decode, and score on a CPU (one per core)")
    return command


def main(arguments: Sequence[str]) -> int:
    """Run `ral evaluate` and return its exit code.

    Args:
        arguments: those after `ral evaluate`.

    Raises:
        UserError: the model, the data or the output folder cannot be used.
    """
    options = parser().parse_args(arguments)
    from ral.extras import require
    from ral.log import configure

    configure()
    if options.workers is not None and options.workers < 1:
        raise UserError("--workers must be at least 1.")
    if not options.data.exists():
        raise UserError(
            f"{options.data} does not exist. Name a table, a folder or a params.yaml with --data."
        )
    require("report", "The report of `ral evaluate`")
    from ral.external import run

    run.check_out(options.out)
    return _run(options)


def _run(options: argparse.Namespace) -> int:
    import pandas as pd

    from ral.evaluation import tables
    from ral.external import run
    from ral.external.labelled import hide_sealed
    from ral.inference.predict import open_predictor
    from ral.inference.records import read_record
    from ral.inference.released import find_model

    folder = find_model(options.model)
    predictor = open_predictor([folder], options.device, workers=options.workers)
    model = predictor.models[0]
    record = read_record(folder, model.findings, model.calibration.version)
    data, split = _open_data(options, model)
    common = run.common_findings(model.findings, data)
    data = hide_sealed(data, record)
    scores = run.score_images(data, predictor)
    evaluation = run.evaluate(data, scores.logits(model.findings, common), record, model.phantom)
    described = run.describe(data, scores, record, predictor, split)
    excluded = pd.concat([data.excluded, scores.bad], ignore_index=True)
    run.write(options.out, evaluation, described, run.predictions(scores, predictor, data), excluded)
    for line in run.messages(described):
        logger.warning("%s", line)
    print(summary(described, tables.to_metrics(evaluation)))
    print(f"report: {options.out / 'report.html'}")
    return SOME_BAD if data.missing or len(scores.bad) else 0


def summary(described: "ExternalValidation", metrics: "Metrics") -> str:
    """The lines that the command prints at its end."""
    from ral import wording
    from ral.evaluation.specs import LABELS, MEANS

    data, model = described.data, described.model
    by = (
        wording.pluralize(metrics.test.patients, "patient", "patients")
        if data.patients_known
        else "unknown patients"
    )
    lines = [
        wording.notice_sentence(metrics.phantom),
        f"Model {model.name}, trained on {model.source}, evaluated on {data.name}: "
        f"{wording.pluralize(data.images, 'image', 'images')} of {by}, "
        f"{wording.pluralize(metrics.macro.findings, 'estimable finding', 'estimable findings')}",
    ]
    lines += [f"macro {LABELS[name]} {metrics.macro[name].text()}" for name in MEANS]
    return "\n".join(lines)


def _open_data(options: argparse.Namespace, model: "ReleasedModel") -> "tuple[LabelledImages, str | None]":
    """The labelled images that the command line names, and the split of a prepared set.

    Raises:
        UserError: options that do not fit together; see the functions that open the data.
    """
    from ral.external import labelled, tables
    from ral.extras import require
    from ral.inference.images import is_prepared

    path: Path = options.data
    if is_prepared(path):
        _refuse(options, "a prepared set", ("images", "source", *COLUMNS))
        split = options.split or "all"
        return labelled.open_prepared(path, split, model.preparation), split
    _refuse(options, "data other than a prepared set: all rows are evaluated", ("split",))
    require("data", "`ral evaluate` with a label table")
    folder, monochrome1 = options.images, "fail"
    if options.source:
        _refuse(options, "--source", ("images", *COLUMNS))
        if not path.is_dir():
            raise UserError(
                f"{path} is not a folder. With --source, --data names the folder of the data set."
            )
        config = tables.published(options.source, path)
    elif path.suffix.lower() in (".yaml", ".yml"):
        _refuse(options, "a parameter file", COLUMNS)
        config, monochrome1 = tables.read_params(path)
    elif path.is_dir() and not list(path.glob("*.parquet")):
        raise UserError(
            f"{path} is a folder without a prepared set. Name a label table in it, or its layout with --source "
            f"({', '.join(SOURCES)})."
        )
    else:
        patient = None if options.without_patients else options.patient_column or "patient_id"
        config = tables.own_table(path, model.findings, options.image_column or "image_id", patient)
        folder = folder or path.parent
    return tables.open_table(config, path.resolve().name, folder, monochrome1, model.preparation), None


def _refuse(options: argparse.Namespace, what: str, names: Sequence[str]) -> None:
    given = [name for name in names if getattr(options, name)]
    if given:
        raise UserError(f"--{given[0].replace('_', '-')} does not go with {what}.")
