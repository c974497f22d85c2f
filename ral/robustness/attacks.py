"""Ranking of the test images under attack, compared with that of the unchanged images; the gap of head and tail."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ral.config.robustness import AttacksConfig
from ral.evaluation.bootstrap import BootstrapDistribution
from ral.evaluation.results import rounded_number
from ral.evaluation.rows import floats
from ral.inference.score import images_per_pass
from ral.models.inputs import normalised
from ral.models.pgd import gray_bounds
from ral.progress import Progress
from ral.robustness.attack import attack_all, attack_each
from ral.robustness.contents import AttackInfo, Attacks, GapRow
from ral.robustness.shifts import Metrics, compare, finding_metrics, positive_calls
from ral.robustness.subject import Subject, not_estimable

# Images per pass of an attack, which keeps activations for the gradient, as a share of those of scoring.
SHARE = 8

Logits = dict[str, NDArray[np.float32]]


def audit_attacks(subject: Subject, config: AttacksConfig, seed: int) -> Attacks:
    """Attack a sample of the test images, on each finding alone and on all at once, and compare.

    Args:
        subject: the model and the images.
        config: the section robustness.attacks; `eps` is not empty.
        seed: of the sample.
    """
    sampled = sample(subject, config.images, seed)
    infos = tuple(
        AttackInfo(name=f"{target}_{eps:g}", target=target, eps=eps)
        for target in ("finding", "all")
        for eps in sorted(config.eps)
    )
    logits = attacked_logits(sampled, infos, config.steps)
    clean = finding_metrics(sampled, logits[""])
    attacked = {info.name: finding_metrics(sampled, logits[info.name]) for info in infos}
    calls = {name: positive_calls(sampled, logits[name]) for name in logits}
    rows = [
        row
        for info in infos
        for row in compare(sampled, info.name, clean, attacked[info.name], (calls[""], calls[info.name]))
    ]
    return Attacks(
        attacks=infos,
        steps=config.steps,
        images=len(sampled.test),
        patients=sampled.resamples.patients,
        not_estimable=dict(sampled.not_estimable),
        # An attack is made to lower the metrics: whether it does is no hypothesis.
        rows=tuple(row.model_copy(update={"p": None}) for row in rows if row.metric in ("ap", "auroc")),
        gaps=tuple(gap_rows(sampled, infos, clean, attacked)),
    )


def sample(subject: Subject, images: int | None, seed: int) -> Subject:
    """The subject with some of its test images, drawn by the seed; with all of them if there are no more."""
    number = len(subject.test)
    if images is None or images >= number:
        return subject
    chosen = np.zeros(number, bool)
    chosen[np.random.default_rng(seed).permutation(number)[:images]] = True
    test, resamples = subject.test[chosen].reset_index(drop=True), subject.resamples.rows(chosen)
    return replace(
        subject,
        test=test,
        rows=subject.rows[chosen],
        resamples=resamples,
        not_estimable=not_estimable(test, subject.tiers, resamples, subject.config.min_positives),
    )


def attacked_logits(subject: Subject, infos: Sequence[AttackInfo], steps: int) -> Logits:
    """Raw logits [images, findings] by name of the attack; "" are those of the unchanged images."""
    labels = np.stack([floats(subject.test[name]) for name in subject.info.findings], axis=1)
    parts: dict[str, list[NDArray[np.float32]]] = {name: [] for name in ("", *(info.name for info in infos))}
    network = subject.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with Progress("attacking images", len(infos) * len(subject.rows), "images") as progress:
        for numbers in _batches(len(subject.rows), subject.dataset.info.size):
            pixels = torch.from_numpy(subject.dataset.gather(subject.rows[numbers])).to(subject.device)
            images = normalised(pixels, subject.info)
            targets = torch.from_numpy(labels[numbers]).to(images)
            with torch.no_grad():
                parts[""].append(network(images).float().cpu().numpy())
            for info in infos:
                bounds = gray_bounds(images, info.eps, subject.info)
                step = 2.5 * info.eps / steps / subject.info.pixel_deviation
                attack = attack_each if info.target == "finding" else attack_all
                worst = attack(network, images, targets, bounds, steps, step)
                parts[info.name].append(worst.float().cpu().numpy())
                progress.add(len(numbers))
    return {name: np.concatenate(found) for name, found in parts.items()}


def _batches(images: int, size: int) -> Iterator[NDArray[np.int64]]:
    """Numbers of the images of each pass."""
    step = max(1, images_per_pass(size) // SHARE)
    for start in range(0, images, step):
        yield np.arange(start, min(start + step, images))


def gap_rows(
    subject: Subject,
    infos: Sequence[AttackInfo],
    clean: Mapping[str, Metrics],
    attacked: Mapping[str, Mapping[str, Metrics]],
) -> Iterator[GapRow]:
    """The AP of the head minus that of the tail, of the unchanged images and under each attack; none if a tier has no
    estimable finding.
    """
    before = _gap(subject, clean)
    if before is None:
        return
    for info in infos:
        after = _gap(subject, attacked[info.name])
        assert after is not None, "the same findings are estimable"
        change = subject.resamples.interval(subject.resamples.difference(after, before))
        one, other = (subject.resamples.interval(gap) for gap in (before, after))
        yield GapRow(
            attack=info.name,
            clean=rounded_number(one.value),
            clean_low=rounded_number(one.low),
            clean_high=rounded_number(one.high),
            value=rounded_number(other.value),
            value_low=rounded_number(other.low),
            value_high=rounded_number(other.high),
            difference=rounded_number(change.value),
            low=rounded_number(change.low),
            high=rounded_number(change.high),
        )


def _gap(subject: Subject, metrics: Mapping[str, Metrics]) -> BootstrapDistribution | None:
    """Mean AP of the head minus mean AP of the tail, in every resample."""
    sides: list[list[BootstrapDistribution]] = [
        [metrics[name]["ap"] for name, own in subject.tiers.items() if own == tier and name in metrics]
        for tier in ("head", "tail")
    ]
    if not all(sides):
        return None
    head, tail = (side[0] if len(side) == 1 else subject.resamples.mean(side) for side in sides)
    return subject.resamples.difference(head, tail)
