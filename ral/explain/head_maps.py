"""Heat maps of heads that have a score or an attention per finding and position: CSRA and ML-Decoder."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from ral.explain.features import NoMapError, feature_map, grid
from ral.models import Network, positions
from ral.models.heads import CSRA, MLDecoder


def csra_map(network: Network, images: Tensor, finding: int) -> Tensor:
    """How much each position adds to the logit of a finding, where that is positive.

    The logit of CSRA is the bias and, over the positions j and the heads of temperature T,
    Σ_j s_j (1 / n + λ softmax(T s)_j); the map is the positive part of each term.

    Args:
        network: in eval mode, with CSRA as its head.
        images: normalised, float32 [images, 1, height, width].
        finding: index of the output.

    Returns:
        Non-negative float32 [images, rows, columns], in units of the logit.

    Raises:
        NoMapError: the network has another head, or no grid of positions.
    """
    head = network.head
    if not isinstance(head, CSRA):
        raise NoMapError("explain.method: csra needs model.head: csra. Use auto.")
    with torch.no_grad():
        features, tokens = _tokens(network, images)
        scores = functional.linear(tokens, head.weight)
        added = torch.zeros_like(scores[:, :, 0])
        for temperature, own in zip(
            head.temperatures, scores.chunk(len(head.temperatures), dim=2), strict=True
        ):
            score = own[:, :, finding]
            if math.isinf(temperature):
                share = functional.one_hot(score.argmax(dim=1), score.shape[1]).to(score.dtype)
            else:
                share = (temperature * score).softmax(dim=1)
            added = added + score * (1 / score.shape[1] + head.lamb * share)
    return functional.relu(added).reshape(len(images), *grid(network, features))


def ml_decoder_map(network: Network, images: Tensor, finding: int) -> Tensor:
    """How much the query of a finding attends to each position, mean over the attention heads.

    Findings of one group (model.ml_decoder.groups) share their query, and so their map.

    Args:
        network: in eval mode, with ML-Decoder as its head.
        images: normalised, float32 [images, 1, height, width].
        finding: index of the output.

    Returns:
        Float32 [images, rows, columns]: shares of the positions.

    Raises:
        NoMapError: the network has another head, or no grid of positions.
    """
    head = network.head
    if not isinstance(head, MLDecoder):
        raise NoMapError("explain.method: ml_decoder needs model.head: ml_decoder. Use auto.")
    with torch.no_grad():
        features, tokens = _tokens(network, images)
        memory = functional.relu(head.embed(tokens))
        queries = head.queries.expand(len(memory), -1, -1)
        # As in the head itself: without self-attention, of which the residual connection and the norm remain.
        _, attention = head.attention(head.query_norm(queries + queries), memory, memory, need_weights=True)
        share: Tensor = attention[:, finding // head.weight.shape[2]]
    return share.reshape(len(images), *grid(network, features))


def _tokens(network: Network, images: Tensor) -> tuple[Tensor, Tensor]:
    """The last feature map, and what the head reads of it: [images, positions, features]."""
    features = feature_map(network, images)
    return features, positions(network.backbone, network.backbone.forward_head(features))
