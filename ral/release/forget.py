"""Compares the model retrained without some patients with an earlier model on the images of these patients.

A model has lower loss on images that it was trained on. The earlier model (the champion) was trained on the forgotten
images, the retrained model was not. Two numbers say what is left: the loss of each model on these images, and how well
the loss separates them from test images that neither model was trained on (membership attack; AUROC 0.5: not at all).
The forgotten images are read from the data folder and stay in memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from ral import artifacts
from ral.config.evaluate import EvaluateConfig
from ral.data.baseline import SPLIT, read_split
from ral.data.dataset import open_dataset
from ral.data.images.decode import dicom_start
from ral.data.privacy import Pseudonymizer
from ral.data.splits.hashing import hash_to_unit_interval
from ral.data.splits.holdout import sealed
from ral.errors import UserError
from ral.evaluation.bootstrap import BootstrapDistribution, Resamples, Support, draw
from ral.evaluation.metrics import rank, ranked
from ral.evaluation.results import Interval
from ral.inference.images import PREPARED_BLOCK, InputImage
from ral.inference.released import ReleasedModel
from ral.inference.scoring import Predictor
from ral.inference.source_images import dark_image, image_contents
from ral.labels import common_findings
from ral.progress import Progress
from ral.release.bundle import require_file
from ral.release.forget_traces import Leaving

Array = NDArray[Any]

# Test images that the forgotten ones are compared with, at most; whole patients, chosen by a hash of the id.
MAX_TEST_IMAGES = 5000
# Probabilities are at least this far from 0 and 1 in a loss.
MIN_PROBABILITY = 1e-6


@dataclass(frozen=True)
class Group:
    """Losses of the same images under both models."""

    patients: Array
    """Of each image, text [images]."""
    before: Array
    """Loss of the earlier model, float64 [images]."""
    after: Array
    """Loss of the retrained model."""


@dataclass(frozen=True)
class Audit:
    """What is left of the forgotten images; AUROCs are of the membership attack."""

    loss_before: Interval
    """Mean loss of the earlier model on the forgotten images."""
    loss_after: Interval
    """Of the retrained model."""
    loss_gap: Interval
    """The retrained model's minus the earlier model's, on the same images: what the earlier one owed to them."""
    attack_before: Interval
    """AUROC of the earlier model's loss, forgotten against test images."""
    attack_after: Interval
    """Of the retrained model's loss: what is not 0.5 is a difference of the images, or a memory."""
    attack_difference: Interval
    """Of the difference of the two losses, in which images that are easy for both models cancel."""

    def lines(self) -> list[str]:
        """The numbers as text."""
        names = {
            "loss_before": "loss of the earlier model on the forgotten images",
            "loss_after": "loss of the retrained model on the forgotten images",
            "loss_gap": "loss gap (retrained − earlier)",
            "attack_before": "membership attack on the earlier model, AUROC",
            "attack_after": "membership attack on the retrained model, AUROC",
            "attack_difference": "membership attack on the difference of the losses, AUROC",
        }
        return [f"{names[item.name]}: {getattr(self, item.name).text()}" for item in fields(self)]

    def sentence(self) -> str:
        """What the attack on the retrained model says."""
        low, high = self.attack_after.low, self.attack_after.high
        if low is None or high is None:
            return (
                "Too few patients for an interval: nothing can be said about a memory of the retrained model."
            )
        if low > 0.5:
            return (
                "The retrained model's loss is lower on the forgotten images than on test images: they are easier "
                "images, or the model was trained on copies of them. Compare with the attack on the difference."
            )
        return "The retrained model's loss does not mark the forgotten images as images that it has seen."


def image_losses(labels: Array, probabilities: Array) -> Array:
    """Cross-entropy of each image, mean over its known labels, float64 [images].

    Args:
        labels: 1, 0 or NaN [images, findings].
        probabilities: calibrated [images, findings]; NaN for a finding without a calibration map.
    """
    inside = np.clip(probabilities, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    losses = -np.where(labels == 1, np.log(inside), np.log1p(-inside))
    known = ~np.isnan(labels) & ~np.isnan(probabilities)
    counts = known.sum(axis=1)
    total = np.where(known, losses, 0.0).sum(axis=1)
    return np.where(counts > 0, total / np.maximum(counts, 1), np.nan)


def compare(forgotten: Group, others: Group, replicates: int, seed: int, confidence: float) -> Audit:
    """Losses and membership attacks, with intervals from resamples of the patients of each group.

    Args:
        forgotten: the forgotten images that the earlier model was trained on.
        others: test images that neither model was trained on.
        replicates: number of resamples.
        seed: of the draw.
        confidence: coverage of the intervals.
    """
    drawn = [_draw(group.patients, replicates, seed, confidence) for group in (forgotten, others)]
    resamples = Resamples(
        np.concatenate([drawn[0].patient, drawn[0].patients + drawn[1].patient]),
        np.concatenate([each.weights for each in drawn]),
        replicates,
        confidence,
        "percentile",
    )
    member = np.arange(len(resamples.patient)) < len(forgotten.patients)
    before, after = (
        np.concatenate([getattr(forgotten, name), getattr(others, name)]) for name in ("before", "after")
    )

    def mean(values: Array) -> Interval:
        totals = resamples.totals(np.stack([np.where(member, values, 0.0), member], axis=1))
        support = Support.of(resamples.counts(member))
        return resamples.interval(BootstrapDistribution(totals[:, 0] / totals[:, 1], support, "free"))

    def attack(scores: Array) -> Interval:
        labels = member.astype(np.float64)
        ranking = rank(scores, labels, resamples.patient, resamples.patients)
        values = ranked(ranking, resamples.weights, ("auroc",))["auroc"]
        return resamples.interval(BootstrapDistribution(values, resamples.support(labels), "auroc"))

    return Audit(
        mean(before),
        mean(after),
        mean(after - before),
        attack(-before),
        attack(-after),
        attack(after - before),
    )


def _draw(patients: Array, replicates: int, seed: int, confidence: float) -> Resamples:
    """Resamples of a group; a single patient is in each of them, and then there is no interval."""
    if len(np.unique(patients)) > 1:
        return draw(patients, replicates, seed, confidence)
    weights = np.ones((1, 1 + replicates), np.uint16)
    return Resamples(np.zeros(len(patients), np.int64), weights, replicates, confidence, "percentile")


def forgotten_group(
    leaving: Leaving, bundle: Path, models: Sequence[ReleasedModel], findings: Sequence[str], monochrome1: str
) -> Group:
    """Losses of both models on the images of excluded patients that the earlier model was trained on.

    Args:
        leaving: the excluded patients in the source.
        bundle: folder of the earlier model's release, with its split.
        models: the earlier and the retrained model.
        findings: that both have.
        monochrome1: preprocess.monochrome1, for images that the table marks so.

    Raises:
        UserError: the earlier model was trained on none of them, or an image cannot be read.
    """
    split = read_split(bundle)
    if split is None:
        raise UserError(f"{bundle} has no {SPLIT}: it is not known on which patients the model was trained.")
    studies = leaving.source.to_studies(leaving.rows) if len(leaving.rows) else pd.DataFrame()
    if studies.empty:
        raise UserError(
            "None of the excluded patients is in the label table any more: there is no image to compare."
        )
    ids = leaving.pseudonymizer.ids(studies["patient_id"])
    trained = released_split(ids, split, leaving.pseudonymizer) == "train"
    studies = studies[trained].drop_duplicates("image_id").set_index("image_id")
    images = leaving.images[leaving.images["image_id"].isin(studies.index)].reset_index(drop=True)
    if images.empty:
        raise UserError(
            f"{bundle.name} was trained on no image of the excluded patients: nothing is there to be forgotten. "
            "Name an earlier release with --against."
        )
    studies = studies.loc[images["image_id"]].reset_index()
    dark = studies["monochrome1"].to_numpy(bool) if "monochrome1" in studies else np.zeros(len(studies), bool)

    def stream(model: ReleasedModel) -> Iterator[InputImage]:
        for number, content in enumerate(_contents(leaving, images)):
            name = f"image {number + 1} of the excluded patients"  # messages must not have its name
            if dark[number] and dicom_start(content) is None:
                yield dark_image(name, content, "", monochrome1, model.preparation)
            else:
                yield InputImage(name, content)

    losses, usable = _losses(studies, models, findings, stream)
    return Group(studies["patient_id"].to_numpy(object)[usable].astype(str), *losses)


def released_split(
    patients: "pd.Series[str]", split: "pd.Series[str]", pseudonymizer: Pseudonymizer
) -> "pd.Series[str]":
    """The split of patients in an earlier release; NaN for those that it does not have.

    Args:
        patients: ids as in today's outputs.
        split: of the release, by patient; its ids may be those of the table although today's are pseudonyms.
        pseudonymizer: makes today's ids.
    """
    renamed = split.set_axis(pseudonymizer.ids(split.index.to_series()).array)
    return patients.map(split).fillna(patients.map(renamed))


def _contents(leaving: Leaving, images: pd.DataFrame) -> Iterator[bytes]:
    try:
        yield from image_contents(leaving.source.root, images)
    except (UserError, OSError):
        raise UserError(
            "An image of an excluded patient cannot be read, or changed while it was read. Check the data folder "
            f"{leaving.source.root} and run this again."
        ) from None


def unseen_group(
    prepared: Path,
    bundle: Path,
    models: Sequence[ReleasedModel],
    findings: Sequence[str],
    config: EvaluateConfig,
    pseudonymizer: Pseudonymizer,
) -> Group:
    """Losses of both models on test images that are not sealed and that neither model was trained on.

    Args:
        prepared: output folder of the step preprocess, on which the retrained model was trained.
        bundle: folder of the earlier model's release, with its split.
        models: the earlier and the retrained model.
        findings: that both have.
        config: evaluate section, for evaluate.sealed.
        pseudonymizer: makes the ids of the prepared data.

    Raises:
        UserError: the images were prepared in another way than the earlier model's, its patients have other ids, or no
            image is left.
    """
    require_file(prepared / artifacts.DATASET.name)
    dataset = open_dataset(prepared)
    for model in models:
        if dataset.info.preparation != model.preparation:
            raise UserError(
                f"{model.name} was trained on images that were prepared in another way than those in {prepared}: their "
                "losses cannot be compared. Retrain with the section preprocess of the earlier model."
            )
    studies, split = dataset.studies, read_split(bundle)
    usable = (studies["split"] == "test").to_numpy() & ~sealed(studies, config.sealed)
    if split is not None:
        before = released_split(studies["patient_id"], split, pseudonymizer)
        if before.isna().all():
            raise UserError(
                f"{bundle.name} has none of the patients in {prepared}, so it is not known which it was trained on: "
                "their ids differ. Use the data.pseudonymise of that release, or name another one with --against."
            )
        usable &= (before.isna() | (before == "test")).to_numpy()
    chosen = _first_patients(studies[usable])
    if not len(chosen):
        raise UserError(
            f"{prepared} has no test image that neither model was trained on, and that is not sealed."
        )
    rows = studies.iloc[chosen].reset_index(drop=True)

    def stream(model: ReleasedModel) -> Iterator[InputImage]:
        for start in range(0, len(chosen), PREPARED_BLOCK):
            for pixels in dataset.gather(chosen[start : start + PREPARED_BLOCK]):
                yield InputImage("test image", pixels=pixels)

    losses, good = _losses(rows, models, findings, stream)
    return Group(rows["patient_id"].to_numpy(object)[good].astype(str), *losses)


def _first_patients(studies: pd.DataFrame) -> Array:
    """Row numbers of the images of whole patients, at most `MAX_TEST_IMAGES`, sorted.

    Args:
        studies: rows of a data set; the index has their numbers.
    """
    hashes = studies["patient_id"].map(
        {name: hash_to_unit_interval(str(name), b"forget") for name in studies["patient_id"].unique()}
    )
    sizes = hashes.groupby(hashes).size()  # sorted by the hash
    last = sizes.cumsum() <= max(MAX_TEST_IMAGES, int(sizes.iloc[0]) if len(sizes) else 0)
    return np.sort(studies.index[hashes.isin(sizes.index[last])].to_numpy())


def _losses(
    studies: pd.DataFrame, models: Sequence[ReleasedModel], findings: Sequence[str], stream: Any
) -> tuple[list[Array], Array]:
    """Losses of each model on the usable images, and which images are usable."""
    probabilities = []
    for model in models:
        columns = [model.findings.index(name) for name in findings]
        with Progress("scoring", len(studies), "images") as progress:
            parts = []
            for part in Predictor([model], torch.device("cpu")).stream(stream(model)):
                parts.append(part.probabilities[:, columns])
                progress.add(len(part.names))
        probabilities.append(np.concatenate(parts))
    # Both models are compared on the same labels.
    unknown = np.any([np.isnan(part) for part in probabilities], axis=0)
    labels = np.where(unknown, np.nan, studies[list(findings)].to_numpy(np.float64))
    losses = [image_losses(labels, part) for part in probabilities]
    usable = ~np.isnan(losses[0])
    if not usable.any():
        raise UserError(
            "No image has a label of a finding for which both models have a probability: evaluate could calibrate none."
        )
    return [part[usable] for part in losses], usable


def audit(
    leaving: Leaving, workspace: Path, bundle: Path, models: Sequence[ReleasedModel], config: EvaluateConfig,
    monochrome1: str,
) -> tuple[Audit, Group, Group]:  # fmt: skip
    """Compare two models on the excluded patients; returns the numbers and what they were made of.

    Args:
        leaving: the excluded patients in the source.
        workspace: project folder after a run without them.
        bundle: folder of the earlier model's release.
        models: the earlier and the retrained model.
        config: evaluate section.
        monochrome1: preprocess.monochrome1.

    Raises:
        UserError: see `forgotten_group` and `unseen_group`; or the models have no finding in common.
    """
    findings = common_findings(models[0].findings, models[1].findings)
    if not findings:
        raise UserError(f"{models[0].name} and {models[1].name} have no finding in common.")
    forgotten = forgotten_group(leaving, bundle, models, findings, monochrome1)
    prepared = workspace / artifacts.PREPARED
    others = unseen_group(prepared, bundle, models, findings, config, leaving.pseudonymizer)
    numbers = compare(forgotten, others, config.replicates, config.seed, config.confidence)
    return numbers, forgotten, others
