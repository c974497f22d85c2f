"""Directions of the classifier and class means of the features, ordered by prevalence: a diagnostic of the
long tail.

Late in training, the features of a class concentrate around their mean and class means move apart (neural
collapse: Papyan, Han and Donoho, PNAS 2020). Under imbalance the directions of rare classes converge, up to
minority collapse (Fang et al., PNAS 2021). With several findings per image, the ideal follows from their
co-occurrences (`ral.explain.collapse`). It is that of the squared loss, so distances to it are for comparing
training runs.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ral.data.dataset import Dataset
from ral.explain.collapse import Ideal, distance
from ral.explain.contents import Collapse, FindingGeometry, Geometry, MeanCosines, Vectors
from ral.explain.features import NoMapError, feature_map, pooled
from ral.labels import Data
from ral.models import Network, classifier
from ral.models.heads import CSRA
from ral.models.info import ModelInfo
from ral.models.inputs import normalised
from ral.wording import RESEARCH_NOTE

Array = NDArray[Any]

# Images per forward pass.
BATCH = 128
DECIMALS = 6


def geometry(network: Network, info: ModelInfo, dataset: Dataset, most: int) -> Geometry:
    """The content of geometry.json.

    Args:
        network: in eval mode, on the device of the computation.
        info: content of model.json.
        dataset: the prepared data; only training images are used.
        most: maximum number of training images whose features are computed.
    """
    labels = dataset.targets()
    train = dataset.rows("train")
    overall, positive = sample(labels[train], most)
    used = np.unique(np.concatenate([overall, *positive]))
    feature_index = {row: index for index, row in enumerate(used)}
    data: Data = "phantom" if info.phantom or dataset.info.phantom else "images"
    try:
        features = image_features(network, info, dataset, train[used])
    except NoMapError as error:
        return Geometry(notice=RESEARCH_NOTE, data=data, not_available=str(error))
    groups = [features[[feature_index[row] for row in rows]] for rows in positive]
    means = class_means(groups, features[[feature_index[row] for row in overall]].mean(axis=0))
    weights, unavailable_reason = class_vectors(network, len(dataset.findings))
    if weights is not None and weights.shape[1] != features.shape[1]:
        weights, unavailable_reason = None, "the classifier does not read the pooled features alone"
    known = (~np.isnan(labels[train])).sum(axis=0)
    counts = np.nansum(labels[train], axis=0)
    prevalence = counts / np.maximum(known, 1)
    order = np.argsort(-prevalence, kind="stable")
    collapse, ideal_norms = (None, None) if weights is None else to_ideal(labels[train], weights, means)
    return Geometry(
        notice=RESEARCH_NOTE,
        data=data,
        images=len(used),
        width=features.shape[1],
        findings=tuple(
            FindingGeometry(
                finding=dataset.findings[index],
                train_prevalence=float(round(prevalence[index], DECIMALS)),
                train_positives=int(counts[index]),
                images=len(groups[index]),
                **spread(groups[index], means[index]),
                **({} if weights is None else direction(weights[index], means[index])),
                **({} if ideal_norms is None else {"ideal_weight_norm": _round(ideal_norms[index])}),
            )
            for index in order
        ),
        class_means=similarity(means[order]),
        classifier=Vectors(not_available=unavailable_reason)
        if weights is None
        else similarity(weights[order]),
        **({} if collapse is None else {"collapse": collapse}),
    )


def to_ideal(labels: Array, weights: Array, means: Array) -> tuple[Collapse | None, Array | None]:
    """The distance of the classifier and of the class means to the ideal, and the ideal lengths of the classifier's
    vectors [findings], scaled to the mean square length of the measured ones. None if no image has a finding, or
    all weights are 0.

    Args:
        labels: of all training images [images, findings].
        weights: the classifier's vectors [findings, width].
        means: class means relative to the mean of all images [findings, width]; NaN without images.
    """
    ideal = Ideal(labels.astype(np.float64))
    if ideal.largest == 0 or not weights.any():
        return None, None
    t = ideal.fit(weights)
    gram = ideal.classifier(t)
    collapse = Collapse(
        vanishing=round(t**2, DECIMALS),
        classifier_distance=round(distance(weights @ weights.T, gram), DECIMALS),
        class_means_distance=_round(distance(means @ means.T, ideal.class_means(t))),
    )
    squares = np.maximum(gram.diagonal(), 0)
    return collapse, np.sqrt(squares * (weights**2).sum() / squares.sum())


def sample(labels: Array, most: int) -> tuple[Array, list[Array]]:
    """Rows to compute features for: evenly spaced images, and for each finding evenly spaced positives.

    Args:
        labels: [images, findings], 1, 0 or NaN.
        most: maximum number of rows; half for all images, half split among the findings.
    """
    images, findings = labels.shape
    share = max(most // 2 // findings, 1)
    positive = [_evenly(np.flatnonzero(labels[:, index] == 1), share) for index in range(findings)]
    return _evenly(np.arange(images), most // 2), positive


def class_means(groups: list[Array], centre: Array) -> Array:
    """Mean feature of each finding's images, relative to the mean of all images: [findings, width], NaN
    without images.
    """
    return np.stack(
        [group.mean(axis=0) - centre if len(group) else np.full_like(centre, np.nan) for group in groups]
    )


def spread(group: Array, mean: Array) -> dict[str, float | None]:
    """Squared distances of a finding's images to their mean, and of that mean to the mean of all images.

    `between` is corrected by within / n, the expected squared error of a mean of n images; otherwise the
    means of few images would look distant. At or below about 0, the mean is indistinguishable from that of
    all images. `variability` is within / between (NC1 of one class): small means collapsed.

    Args:
        group: features of the finding's images, [images, width].
        mean: their mean, relative to the mean of all images.
    """
    if len(group) < 2:
        return {"within": None, "between": None, "variability": None}
    within = float(group.var(axis=0, ddof=1).sum())
    between = float((mean**2).sum()) - within / len(group)
    ratio = within / between if between > 0 else None
    return {"within": _round(within), "between": _round(between), "variability": _round(ratio)}


def direction(weights: Array, mean: Array) -> dict[str, float | None]:
    """Length of a finding's classifier vector [width], and its cosine with the mean of the features [width]."""
    return {
        "weight_norm": _round(np.linalg.norm(weights)),
        "alignment": _round(cosines(np.stack([weights, mean]))[0, 1]),
    }


def class_vectors(network: Network, findings: int) -> tuple[Array | None, str | None]:
    """The classifier's weight vector of each finding [findings, width]; or None and the reason.

    With several attention heads, CSRA has one per head; they are summed, like their scores.
    """
    part = classifier(network)
    if isinstance(part, CSRA):
        return _numpy(part.weight).reshape(len(part.temperatures), findings, -1).sum(axis=0), None
    weight = part.weight if isinstance(part, nn.Linear | nn.Conv2d) else None
    if weight is not None and weight.numel() == len(weight) * weight.shape[1] and len(weight) == findings:
        return _numpy(weight).reshape(findings, -1), None
    return None, f"the head {type(part).__name__} has no weight vector per finding"


def cosines(vectors: Array) -> Array:
    """Cosine similarity of each pair of rows; NaN where a row is NaN or 0. Noise in means of few images
    biases it towards 0.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, np.nan)
    return unit @ unit.T


def similarity(vectors: Array) -> Vectors:
    """Cosines of vectors ordered by prevalence: the matrix, and its means within and between its two halves.

    `common` is the more frequent half of the findings (with the middle one), `rare` the other.
    """
    matrix = cosines(vectors)
    half = -(-len(vectors) // 2)
    off_diagonal = np.where(np.eye(len(vectors), dtype=bool), np.nan, matrix)
    parts = {
        "common": off_diagonal[:half, :half],
        "rare": off_diagonal[half:, half:],
        "common_to_rare": off_diagonal[:half, half:],
    }
    means = {
        name: _round(part[~np.isnan(part)].mean()) if (~np.isnan(part)).any() else None
        for name, part in parts.items()
    }
    rounded = tuple(tuple(_round(value) for value in row) for row in matrix)
    return Vectors(cosines=rounded, mean_cosine=MeanCosines(**means))


def image_features(network: Network, info: ModelInfo, dataset: Dataset, rows: Array) -> Array:
    """Pooled features of images, float64 [rows, width]."""
    device = next(network.parameters()).device
    parts = []
    with torch.inference_mode():
        for start in range(0, len(rows), BATCH):
            pixels = torch.from_numpy(dataset.gather(rows[start : start + BATCH])).to(device)
            parts.append(_numpy(pooled(network, feature_map(network, normalised(pixels, info)))))
    return np.concatenate(parts)


def _evenly(rows: Array, most: int) -> Array:
    if len(rows) <= most:
        return rows
    return rows[np.arange(most) * len(rows) // most]


def _numpy(tensor: Tensor) -> Array:
    return tensor.detach().float().cpu().numpy().astype(np.float64)


def _round(value: Any) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), DECIMALS) + 0.0
