"""Which training images an epoch holds, and in which order: pure functions of (labels, seed, epoch).

A finding counts where its label is 1; an unknown label counts as not positive. A finding without a positive image plays
no part. Every epoch of a run has the same number of images, so that the steps can be counted beforehand.
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
    """The images of one epoch in the order in which they are trained on.

    Args:
        config: the sampler and its options.
        targets: labels float32 [images, findings] of the training images alone: 1, 0, NaN where unknown.
        rows: row numbers int64 [images] of these images in the data set.
        seed: train.seed.
        epoch: counted from 0.
        epochs: number of epochs of this phase of the training; only temperature asks.

    Returns:
        Row numbers int64, `epoch_images` of them; an image may come several times or not at all.

    Raises:
        ValueError: targets and rows are not of the same images.
    """
    if targets.shape[0] != len(rows):
        raise ValueError(f"{targets.shape[0]} rows of labels for {len(rows)} images")
    rng = np.random.default_rng([seed, epoch])
    match config.name:
        case "uniform":
            return rng.permutation(rows)
        case "inverse_frequency":
            chosen = _inverse_frequency(targets, rng)
        case "class_aware":
            chosen = _class_aware(targets, rng)
        case "repeat_factor":
            chosen = _repeat_factor(config.repeat_factor, targets, rng)
        case "temperature":
            tau = temperature(config.temperature, epoch, epochs)
            chosen = _temperature(targets, tau, rng)
    return rows[rng.permutation(chosen)]


def epoch_images(config: SamplerConfig, targets: np.ndarray) -> int:
    """Number of images in each epoch: all of them, and with repeat_factor the repetitions too."""
    if config.name != "repeat_factor":
        return len(targets)
    factors = repeat_factors(config.repeat_factor, targets)
    whole = np.floor(factors)
    return int(whole.sum()) + int((factors - whole).sum())


def _inverse_frequency(targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw images with replacement, each with a chance inverse to the number of images with its rarest finding.

    An epoch: as many draws as there are images. Not every image is seen (with equal chances about 63 % would be).
    Images without a finding are a group of their own. An image counts by its rarest finding only: summed over its
    findings, the chances would be those of class_aware.
    """
    positive = targets == 1
    counts, groups = _counts(positive), _rarest(positive)
    chances = 1.0 / counts[groups]
    return rng.choice(len(targets), size=len(targets), p=chances / chances.sum())


def _class_aware(targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give every finding the same number of places (Shen et al., ECCV 2016; cRT, Kang et al., ICLR 2020).

    An epoch: as many places as there are images, shared out equally among the findings and the images without one; the
    remainder goes to groups drawn anew each epoch. A group's images take turns, none a second time before all others
    had one. Not every image is seen. An image with several findings holds places of each of them.
    """
    positive = np.asfortranarray(targets == 1)
    members = [np.flatnonzero(column) for column in positive.T]
    members.append(np.flatnonzero(~positive.any(axis=1)))
    members = [images for images in members if len(images)]
    places = np.full(len(members), len(targets) // len(members))
    places[rng.permutation(len(members))[: len(targets) % len(members)]] += 1
    return np.concatenate([_turns(images, count, rng) for images, count in zip(members, places, strict=True)])


def _repeat_factor(options: RepeatFactorOptions, targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Repeat images with rare findings (Gupta et al., CVPR 2019).

    An epoch: every image at least once, each as often as its repeat factor on average over the epochs. A factor of 2.3
    means two or three times. The third time goes round in one sweep over the images in random order, not by a die
    for each as in the paper, so that all epochs have the same length.
    """
    factors = repeat_factors(options, targets)
    times = np.floor(factors).astype(np.int64)
    fractions = factors - times
    order = rng.permutation(len(targets))
    total = fractions.sum()
    if total >= 1:
        # Scaled down to a whole sum (never up: an image would get two), so that the sweep always hands out as many.
        reached = np.cumsum(fractions[order]) * (int(total) / total)
        reached[-1] = int(total)
        marks = np.floor(reached + rng.random()).astype(np.int64)
        times[order] += np.diff(marks, prepend=0)
    return np.repeat(np.arange(len(targets)), times)


def repeat_factors(options: RepeatFactorOptions, targets: np.ndarray) -> np.ndarray:
    """How often each image comes in an epoch on average, float64 [images], at least 1.

    √(threshold / f) for a finding on a share f of the images; an image takes the largest of its findings', and 1 without
    a finding.
    """
    positive = targets == 1
    counts = _counts(positive)
    shares = np.append(counts[:-1] / len(targets), 1.0)  # images without a finding are never repeated
    with np.errstate(divide="ignore"):  # a finding that no image shows is no image's rarest
        factors = np.clip(np.sqrt(options.threshold / shares), 1.0, options.max_repeat)
    return factors[_rarest(positive)]


def _temperature(targets: np.ndarray, tau: float, rng: np.random.Generator) -> np.ndarray:
    """Give a group of n images a share of the places proportional to n^(1/τ) (Li et al., NAACL 2025).

    Groups must not overlap if τ = 1 is to be the data as they are: an image belongs to its rarest finding, images without
    one to a group of their own. An epoch: as many places as there are images, rounded to whole ones by largest
    remainder; a group's images take turns. τ = 1: every image once. Larger: images of small groups several times, of
    large groups not all.
    """
    groups = _rarest(targets == 1)
    order = np.argsort(groups, kind="stable")
    sizes = np.bincount(groups)
    members = [images for images in np.split(order, np.cumsum(sizes)[:-1]) if len(images)]
    weights = np.array([float(len(images)) for images in members]) ** (1.0 / tau)
    exact = len(targets) * weights / weights.sum()
    places = np.floor(exact + 1e-9).astype(np.int64)
    left = len(targets) - int(places.sum())
    places[np.argsort(places - exact, kind="stable")[:left]] += 1
    return np.concatenate([_turns(images, count, rng) for images, count in zip(members, places, strict=True)])


def temperature(options: TemperatureOptions, epoch: int, epochs: int) -> float:
    """The temperature of an epoch counted from 0: a straight fall over `share` × epochs, then constant."""
    length = options.share * epochs
    done = min(1.0, epoch / length) if length else 1.0
    return options.start + (options.end - options.start) * done


def _counts(positive: np.ndarray) -> np.ndarray:
    """Images per finding, and of those without any as a last entry: int64 [findings + 1]."""
    return np.append(positive.sum(axis=0), np.count_nonzero(~positive.any(axis=1)))


def _rarest(positive: np.ndarray) -> np.ndarray:
    """The finding of each image that the fewest images show (the first of equals); the number of findings where none."""
    findings = positive.shape[1]
    order = np.argsort(positive.sum(axis=0), kind="stable")
    # A last column that is always true catches the images without a finding.
    ordered = np.column_stack([positive[:, order], np.ones(len(positive), bool)])
    return np.append(order, findings)[ordered.argmax(axis=1)]


def _turns(images: np.ndarray, places: int, rng: np.random.Generator) -> np.ndarray:
    """`places` images of a group in random turns: each comes ⌊places / images⌋ times or once more."""
    rounds = -(-places // len(images))
    return rng.permuted(np.tile(images, (rounds, 1)), axis=1).ravel()[:places]
