"""Samplers: the training images of an epoch and their order, as pure functions of (labels, seed, epoch).

An image is positive for a finding if its label is 1; unknown labels count as not positive. Findings without a
positive image are ignored. All epochs of a run have the same number of images, so the number of steps is
known in advance.
"""

import numpy as np

from ral.config.sampler import RepeatFactorOptions, SamplerConfig, TemperatureOptions


def epoch_rows(
    config: SamplerConfig,
    targets: np.ndarray,
    rows: np.ndarray,
    seed: int,
    epoch: int,
    epochs: int,
) -> np.ndarray:
    """The images of one epoch, in training order.

    Args:
        config: the sampler and its options.
        targets: labels [images, findings] of the training images only: 1 where positive, other values elsewhere.
        rows: row numbers int64 [images] of these images in the data set.
        seed: train.seed.
        epoch: counted from 0.
        epochs: number of epochs of this training phase; used by temperature only.

    Returns:
        Row numbers int64 [`epoch_images`]; an image may occur several times or not at all.

    Raises:
        ValueError: targets and rows differ in length.
    """
    if targets.shape[0] != len(rows):
        raise ValueError(f"{targets.shape[0]} rows of labels for {len(rows)} images")
    rng = np.random.default_rng([seed, epoch])
    chosen: np.ndarray
    match config.name:
        case "uniform":
            shuffled: np.ndarray = rng.permutation(rows)
            return shuffled
        case "inverse_frequency":
            chosen = _inverse_frequency(targets, rng)
        case "class_aware":
            chosen = _class_aware(targets, rng)
        case "repeat_factor":
            chosen = _repeat_factor(config.repeat_factor, targets, rng)
        case "temperature":
            tau = temperature(config.temperature, epoch, epochs)
            chosen = _temperature(targets, tau, rng)
    in_order: np.ndarray = rows[rng.permutation(chosen)]
    return in_order


def epoch_images(config: SamplerConfig, targets: np.ndarray) -> int:
    """Number of images per epoch: all training images, plus the repetitions under repeat_factor."""
    if config.name != "repeat_factor":
        return len(targets)
    factors = repeat_factors(config.repeat_factor, targets)
    whole = np.floor(factors)
    return int(whole.sum()) + int((factors - whole).sum())


def _inverse_frequency(targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Sample images with replacement, with probability inverse to the frequency of their rarest finding.

    An epoch has as many draws as there are images, so not every image is seen (about 63 % would be under
    equal probabilities). Images without a finding form their own group. Only the rarest finding of an image
    counts: summing over its findings would give the probabilities of class_aware.
    """
    positive = targets == 1
    counts, groups = _counts(positive), _rarest(positive)
    weights = 1.0 / counts[groups]
    return rng.choice(len(targets), size=len(targets), p=weights / weights.sum())


def _class_aware(targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw the same number of samples for every finding (Shen et al., ECCV 2016; cRT, Kang et al., ICLR
    2020).

    An epoch has as many samples as there are images, split equally among the findings and the group of images
    without one; the remainder goes to randomly drawn groups. Within a group, no image is repeated before all
    others were drawn. Not every image is seen. An image with several findings can be drawn for each of them.
    """
    positive = np.asfortranarray(targets == 1)
    members = [np.flatnonzero(column) for column in positive.T]
    members.append(np.flatnonzero(~positive.any(axis=1)))
    members = [images for images in members if len(images)]
    sample_counts = np.full(len(members), len(targets) // len(members))
    sample_counts[rng.permutation(len(members))[: len(targets) % len(members)]] += 1
    return np.concatenate(
        [_cycle(images, count, rng) for images, count in zip(members, sample_counts, strict=True)]
    )


def _repeat_factor(options: RepeatFactorOptions, targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Repeat images with rare findings (Gupta et al., CVPR 2019).

    An epoch has every image at least once, and on average over epochs as often as its repeat factor. A factor
    of 2.3 means two or three times. Fractions are rounded by systematic sampling over the images in random
    order, not independently per image as in the paper, so that all epochs have the same length.
    """
    factors = repeat_factors(options, targets)
    times = np.floor(factors).astype(np.int64)
    fractions = factors - times
    order = rng.permutation(len(targets))
    total = fractions.sum()
    if total >= 1:
        # Scale down to an integer sum (scaling up could give an image two), so that the total is always the
        # same.
        cumulative = np.cumsum(fractions[order]) * (int(total) / total)
        cumulative[-1] = int(total)
        crossings = np.floor(cumulative + rng.random()).astype(np.int64)
        times[order] += np.diff(crossings, prepend=0)
    return np.repeat(np.arange(len(targets)), times)


def repeat_factors(options: RepeatFactorOptions, targets: np.ndarray) -> np.ndarray:
    """Mean number of repetitions of each image per epoch, float64 [images], at least 1.

    √(threshold / f) for a finding with frequency f; an image has the maximum over its findings, or 1 without
    a finding.
    """
    positive = targets == 1
    counts = _counts(positive)
    shares = np.append(counts[:-1] / len(targets), 1.0)  # images without a finding are never repeated
    with np.errstate(divide="ignore"):  # a finding without positives is never an image's rarest
        factors = np.clip(np.sqrt(options.threshold / shares), 1.0, options.max_repeat)
    repeats: np.ndarray = factors[_rarest(positive)]
    return repeats


def _temperature(targets: np.ndarray, tau: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a share of samples proportional to n^(1/τ) from a group of n images (Li et al., NAACL 2025).

    Each image belongs to one group, that of its rarest finding; images without a finding form their own. With
    disjoint groups, τ = 1 reproduces the data: every image once. Larger τ repeats images of small groups and
    leaves out some of large ones. An epoch has as many samples as there are images, rounded per group by
    largest remainder. Within a group, no image is repeated before all others were drawn.
    """
    groups = _rarest(targets == 1)
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups)
    members = [images for images in np.split(order, np.cumsum(sizes)[:-1]) if len(images)]
    weights = np.array([float(len(images)) for images in members]) ** (1.0 / tau)
    exact = len(targets) * weights / weights.sum()
    sample_counts = np.floor(exact + 1e-9).astype(np.int64)
    remainder = len(targets) - int(sample_counts.sum())
    sample_counts[np.argsort(sample_counts - exact, kind="stable")[:remainder]] += 1
    return np.concatenate(
        [_cycle(images, count, rng) for images, count in zip(members, sample_counts, strict=True)]
    )


def temperature(options: TemperatureOptions, epoch: int, epochs: int) -> float:
    """Temperature of an epoch, counted from 0: linear decay over `share` × epochs, then constant."""
    length = options.share * epochs
    progress = min(1.0, epoch / length) if length else 1.0
    return options.start + (options.end - options.start) * progress


def _counts(positive: np.ndarray) -> np.ndarray:
    """Images per finding, then images without a finding: int64 [findings + 1]."""
    return np.append(positive.sum(axis=0), np.count_nonzero(~positive.any(axis=1)))


def _rarest(positive: np.ndarray) -> np.ndarray:
    """Index of each image's rarest finding (the first on ties); the number of findings if the image has none."""
    rarest = np.full(len(positive), positive.shape[1])
    for finding in np.argsort(positive.sum(axis=0), kind="stable")[
        ::-1
    ]:  # a rarer finding replaces a commoner one
        rarest[positive[:, finding]] = finding
    return rarest


def _cycle(images: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `count` images by cycling through random permutations: each occurs ⌊count / images⌋ times or once more."""
    rounds = -(-count // len(images))
    return rng.permuted(np.tile(images, (rounds, 1)), axis=1).ravel()[:count]
