"""Collects the gate's inputs from a workspace and the registry, and the champion's logits for the step evaluate."""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ral import artifacts
from ral.config.base import load
from ral.config.evaluate import EvaluateConfig
from ral.config.gate import GateConfig
from ral.config.params import Params
from ral.data.dataset import Dataset, open_dataset
from ral.data.splits.holdout import gate_set, sealed
from ral.data.validation.result import ValidationResult
from ral.errors import UserError
from ral.evaluation.rows import read_studies
from ral.labels import common_findings
from ral.release.bundle import read_preparation, require_file
from ral.release.gate import GateInputs
from ral.release.ledger import Decision, Ledger
from ral.release.registry import Registry
from ral.release.rescore import reference_model
from ral.robustness.contents import Robustness


def collect_inputs(
    workspace: Path, registry: Registry, run_id: str
) -> tuple[GateInputs, EvaluateConfig, GateConfig]:
    """Collect the gate's inputs after a complete run, and score champion and anchor on its gate set.

    Args:
        workspace: the project's folder after the run.
        registry: the registry that has the champion.
        run_id: id of the run; an earlier decision of the same run is not counted.

    Raises:
        UserError: a file of the run is missing, or a bundle is missing or damaged.
    """
    params = load(workspace / "params.yaml", Params)
    tables = [_table(workspace / artifacts.logits(split)) for split in ("val", "test")]
    dataset = _dataset(workspace / artifacts.PREPARED)
    index = decision_index(registry.ledger, run_id)
    images = _test_images(dataset, params.evaluate)
    in_set = gate_set(dataset.studies["patient_id"], params.gate.sets, index)[images]
    current_preparation = read_preparation(workspace / "params.yaml")
    champion = registry.champion()
    anchor = None  # only needed for the non-inferiority margin
    if champion and params.gate.margin is not None and params.gate.anchor is not None:
        anchor = registry.release(params.gate.anchor)
    releases = {release.version: release for release in (champion, anchor) if release is not None}
    references = {
        version: reference_model(release, dataset, images[in_set], current_preparation)
        for version, release in releases.items()
    }
    inputs = GateInputs(
        studies=read_studies(workspace / artifacts.PREPARED),
        val=tables[0],
        test=tables[1],
        champion=references[champion.version] if champion else None,
        anchor=references[anchor.version] if anchor else None,
        data=ValidationResult.read(require_file(workspace / artifacts.VALIDATION)),
        preparation=current_preparation,
        decision_index=index,
        run_id=run_id,
        robustness=_robustness(workspace / artifacts.AUDITED),
    )
    return inputs, params.evaluate, params.gate


def _robustness(path: Path) -> Robustness | None:
    """The result of the step robustness; None in a run of an earlier version, which has none."""
    return Robustness.read(path) if path.is_file() else None


def decision_index(ledger: Ledger, run_id: str) -> int:
    """Number of decisions recorded before that of a run."""
    runs = [entry.event.run_id for entry in ledger.entries() if isinstance(entry.event, Decision)]
    return runs.index(run_id) if run_id in runs else len(runs)


def champion_logits(workspace: Path, registry: Registry) -> tuple[pd.DataFrame | None, str]:
    """The champion's logits on the unsealed test images of patients it has not seen, for the findings of this run.

    Returns:
        The logits, or None if there is no champion that this run's model can be compared with; and a message to print.

    Raises:
        UserError: the champion's bundle is missing or damaged, or preprocess has not run.
    """
    champion = registry.champion()
    if champion is None:
        return None, "There is no champion yet: nothing to compare with."
    params = load(workspace / "params.yaml", Params)
    dataset = _dataset(workspace / artifacts.PREPARED)
    current_preparation = read_preparation(workspace / "params.yaml")
    reference = reference_model(
        champion, dataset, _test_images(dataset, params.evaluate), current_preparation
    )
    if reference.preparation != current_preparation:
        return None, f"{champion.version} was trained on images preprocessed differently: not comparable."
    common = common_findings(dataset.findings, reference.logits.columns)
    if not common or reference.logits.empty:
        missing = "unseen test images" if common else "findings"
        return None, f"{champion.version} and this run's data have no {missing} in common: not comparable."
    return (
        reference.logits[["image_id", *common]],
        f"{champion.version} scored on {len(reference.logits):,} test images and {len(common)} findings.",
    )


def _test_images(dataset: Dataset, config: EvaluateConfig) -> NDArray[np.intp]:
    """Row numbers of the test images that are not sealed."""
    rows: NDArray[np.intp] = dataset.rows("test")
    return rows[~sealed(dataset.studies, config.sealed)[rows]]


def _dataset(folder: Path) -> Dataset:
    require_file(folder / artifacts.DATASET.name)
    return open_dataset(folder)


def _table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(require_file(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a Parquet table ({error}). Train again (dvc repro train).") from None
