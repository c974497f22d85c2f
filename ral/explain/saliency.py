"""Heat maps of images: Grad-CAM for networks with a feature map, attention rollout for vision transformers, and what
the heads CSRA and ML-Decoder say themselves.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ral.explain.contents import Method, Requested
from ral.explain.features import NoMapError, earlier_layer, feature_map, grid, layers, logits_of, watched
from ral.explain.head_maps import csra_map, ml_decoder_map
from ral.models import Network, positions
from ral.models.heads import CSRA, MLDecoder
from ral.suggest import did_you_mean

# Rows and columns that a heat map must have: a coarser one, enlarged, suggests a precision that it does not have.
SMALLEST = 7


@dataclass(frozen=True)
class Choice:
    """How the heat maps of a network are computed."""

    method: Method | None = None
    """None: there are no heat maps."""
    layer: str | None = None
    """Grad-CAM: module of the backbone whose feature map is used; None: the last feature map before pooling."""
    reason: str | None = None
    """Why there are no heat maps, or why an earlier layer is used."""


# Method -> the head that has it.
HEADS: dict[Method, type[nn.Module]] = {"csra": CSRA, "ml_decoder": MLDecoder}


def heat_maps(network: Network, images: Tensor, finding: int, choice: Choice) -> Tensor:
    """Heat maps [images, rows, columns] of a finding, by the chosen method.

    Args:
        network: in eval mode.
        images: normalised, float32 [images, 1, height, width].
        finding: index of the output.
        choice: has a method.
    """
    if choice.method == "rollout":
        return rollout(network, images)
    if choice.method == "csra":
        return csra_map(network, images, finding)
    if choice.method == "ml_decoder":
        return ml_decoder_map(network, images, finding)
    return grad_cam(network, images, finding, choice.layer)


def grad_cam(network: Network, images: Tensor, finding: int, layer: str | None = None) -> Tensor:
    """Regions of a feature map of the backbone that increase the logit of a finding (Selvaraju et al., ICCV
    2017, equations 1 and 2).

    α_k is the mean over the positions of ∂logit/∂A_k, and the map is ReLU(Σ_k α_k A_k).

    Args:
        network: in eval mode; no gradients of its weights are computed.
        images: normalised, float32 [images, 1, height, width].
        finding: index of the output.
        layer: module of the backbone whose output is the feature map; None: the last one before pooling.

    Returns:
        Non-negative float32 [images, rows, columns], in units of the logit.
    """
    features, logits = _features_and_logits(network, images, layer)
    # In eval mode, images do not affect each other.
    (gradient,) = torch.autograd.grad(logits[:, finding].sum(), features)
    return _weighted(network, features, gradient)


def grad_cams(network: Network, images: Tensor, finding: int, names: Sequence[str | None]) -> list[Tensor]:
    """`grad_cam` of several layers, from one pass through the network.

    Args:
        network: as for `grad_cam`, as are images and finding.
        names: layers, without repeats; None is the last feature map.
    """
    if not names:
        return []
    kept: dict[str | None, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor], Tensor | None]:
        def seen(output: Tensor) -> Tensor | None:
            kept[name] = output
            return output.clone()  # some layers and classifiers work in place

        return seen

    watchers = {network.backbone.get_submodule(name): keep(name) for name in names if name is not None}
    with torch.enable_grad(), watched(watchers):
        kept[None] = feature_map(network, images.detach().requires_grad_())
        logits = logits_of(network, kept[None].clone())
    gradients = torch.autograd.grad(logits[:, finding].sum(), [kept[name] for name in names])
    return [_weighted(network, kept[name], own) for name, own in zip(names, gradients, strict=True)]


def _weighted(network: Network, features: Tensor, gradient: Tensor) -> Tensor:
    """The map of Grad-CAM, from a feature map and the gradient of the logit."""
    values = positions(network.backbone, features.detach())
    weights = positions(network.backbone, gradient).mean(dim=1, keepdim=True)
    heat: Tensor = functional.relu((weights * values).sum(dim=2))
    return heat.reshape(len(heat), *grid(network, features))


def _features_and_logits(network: Network, images: Tensor, layer: str | None) -> tuple[Tensor, Tensor]:
    """A feature map that gradients are computed for, and the logits [images, findings] as a function of it."""
    kept: list[Tensor] = []

    def keep(features: Tensor) -> Tensor:
        kept.append(features.detach().requires_grad_())
        return kept[0].clone()  # some layers and classifiers work in place

    if layer is None:
        with torch.no_grad():
            features = feature_map(network, images)
        with torch.enable_grad():
            logits = logits_of(network, keep(features))
    else:
        with torch.enable_grad(), watched({network.backbone.get_submodule(layer): keep}):
            logits = network(images)
    return kept[0], logits


def rollout(network: Network, images: Tensor) -> Tensor:
    """How much each position contributes to the output through the attention of all layers; equal for all
    findings.

    The output is computed from the class token (and the distillation token, if any) or the mean of the
    patches; the rows of `roll_out` for these tokens are averaged.

    Returns:
        Float32 [images, rows, columns]: share of each patch.

    Raises:
        NoMapError: the network has no global attention.
    """
    with torch.no_grad(), recorded_attention(network.backbone) as attentions:
        features = feature_map(network, images)
    if not _is_global(attentions, features):
        raise NoMapError(
            f"explain.method: rollout needs global attention (all tokens attend to each other) in every layer, which "
            f"{type(network.backbone).__name__} does not have. Use auto or grad_cam."
        )
    prefix = getattr(network.backbone, "num_prefix_tokens", 0)
    contributions = roll_out(attentions)
    if not uses_class_token(network):
        output_rows = contributions[:, prefix:]
    else:
        output_rows = contributions[:, : 2 if hasattr(network.backbone, "head_dist") else 1]
    shares = output_rows.mean(dim=1)[:, prefix:]
    return shares.reshape(len(shares), *grid(network, features))


def roll_out(attentions: Sequence[Tensor]) -> Tensor:
    """Attention rollout (Abnar and Zuidema, ACL 2020): the product over layers of ½ A + ½ I, A the mean over
    heads.

    The identity accounts for the residual connection.

    Args:
        attentions: per layer from the first, [images, heads, tokens, tokens]; rows sum to 1.

    Returns:
        [images, tokens, tokens]; row i is the contribution of each input token to token i. Rows sum to 1.
    """
    identity = torch.eye(attentions[0].shape[-1], device=attentions[0].device, dtype=attentions[0].dtype)
    contributions = identity.expand(len(attentions[0]), -1, -1)
    for attention in attentions:
        contributions = (attention.mean(dim=1) + identity) / 2 @ contributions
    return contributions


def choose_method(network: Network, requested: Requested, image: Tensor, layer: str | None = None) -> Choice:
    """Choose the method: `requested`; for auto, rollout if the network supports it, but with CSRA Grad-CAM.

    A heat map has at least `SMALLEST` rows and columns. If the last feature map is coarser, Grad-CAM uses an earlier
    layer; if there is none, or with other methods, there are no heat maps.

    Args:
        network: in eval mode.
        requested: the parameter explain.method.
        image: any image, [1, 1, height, width].
        layer: the parameter explain.layer: the layer of Grad-CAM, however coarse.

    Raises:
        NoMapError: the network does not support the requested method, or has no such layer.
    """
    if layer is not None:
        return _with_layer(network, requested, image, layer)
    try:
        with torch.no_grad(), recorded_attention(network.backbone) as attentions:
            features = feature_map(network, image)
        rows, columns = grid(network, features)
        coarse = f"the last feature map has {rows} × {columns} positions, fewer than {SMALLEST} × {SMALLEST}"
        if requested in ("csra", "ml_decoder"):
            heat_maps(network, image, 0, Choice(requested))  # fails if the network has another head
            return Choice(requested) if min(rows, columns) >= SMALLEST else Choice(reason=coarse)
        # With CSRA, Grad-CAM points better (docs/localisation.md).
        rolls_out = _is_global(attentions, features) and not isinstance(network.head, CSRA)
        if requested == "rollout" or (requested == "auto" and rolls_out):
            rollout(network, image)
            return Choice("rollout") if min(rows, columns) >= SMALLEST else Choice(reason=coarse)
        if features.ndim == 3 and uses_class_token(network):
            raise NoMapError(
                f"explain.method: grad_cam is not possible with {type(network.backbone).__name__}, whose "
                "output depends on "
                "the class token and not on the patches. Use auto, or another model.head."
            )
    except NoMapError as error:
        if requested != "auto":
            raise
        return Choice(reason=str(error))
    if min(rows, columns) >= SMALLEST:
        return Choice("grad_cam")
    with torch.no_grad():
        earlier = earlier_layer(network, image, SMALLEST)
    if earlier is None:
        return Choice(reason=f"{coarse}, and so has every earlier layer that timm lists")
    return Choice("grad_cam", earlier, coarse)


def _with_layer(network: Network, requested: Requested, image: Tensor, layer: str) -> Choice:
    """Grad-CAM at the layer that explain.layer names."""
    if requested not in ("auto", "grad_cam"):
        raise NoMapError(
            f"explain.layer is for grad_cam, but explain.method is {requested}. Set one of them to its default."
        )
    with torch.no_grad():
        listed = layers(network, image)
    if layer not in listed:
        raise NoMapError(
            f"explain.layer: `{layer}` is no layer of {type(network.backbone).__name__} with a feature map."
            f"{did_you_mean(layer, listed)} Allowed: {', '.join(listed) or 'null'}."
        )
    if layer not in _earlier_layers(network, image, listed):
        return Choice("grad_cam")  # the last feature map
    return Choice("grad_cam", layer, "set by explain.layer")


def _earlier_layers(
    network: Network, image: Tensor, listed: dict[str, tuple[int, int]]
) -> dict[str, tuple[int, int]]:
    """The layers of `ral.explain.features.layers` whose feature map is not the last one before pooling."""
    with torch.no_grad():
        features = feature_map(network, image)
    earlier = dict(listed)
    if features.ndim == 4 and earlier and list(earlier.values())[-1] == grid(network, features):
        earlier.popitem()
    return earlier


def candidates(network: Network, image: Tensor) -> dict[Choice, tuple[int, int]]:
    """Every method and layer that the network supports, with the rows and columns of its heat maps, however coarse;
    none if it has no feature map.

    Args:
        network: in eval mode.
        image: any image, [1, 1, height, width].
    """
    found: dict[Choice, tuple[int, int]] = {}
    try:
        with torch.no_grad(), recorded_attention(network.backbone) as attentions:
            features = feature_map(network, image)
        last = grid(network, features)
    except NoMapError:  # the gallery says why it has no heat maps
        return {}
    with torch.no_grad():
        earlier = _earlier_layers(network, image, layers(network, image))
    found |= {Choice("grad_cam", name): sides for name, sides in earlier.items()}
    if features.ndim == 4 or not uses_class_token(network):
        found[Choice("grad_cam")] = last
    if _is_global(attentions, features):
        found[Choice("rollout")] = last
    for method, head in HEADS.items():
        if isinstance(network.head, head):
            found[Choice(method)] = last
    return found


def uses_class_token(network: Network) -> bool:
    """Whether the output is computed from a class token instead of the patches."""
    return (
        network.head is None
        and getattr(network.backbone, "num_prefix_tokens", 0) > 0
        and getattr(network.backbone, "global_pool", "token") == "token"
    )


def enlarge(maps: Tensor, size: int) -> Tensor:
    """Upsample maps [images, rows, columns] bilinearly to [images, size, size], and scale each to a maximum
    of 1.

    Maps that are 0 everywhere are left at 0.
    """
    large = functional.interpolate(maps.unsqueeze(1), size=(size, size), mode="bilinear", align_corners=False)
    large = large.squeeze(1)
    peak = large.amax(dim=(1, 2), keepdim=True)
    return torch.where(peak > 0, large / peak.clamp_min(torch.finfo(large.dtype).tiny), 0.0)


@contextmanager
def recorded_attention(backbone: nn.Module) -> Iterator[list[Tensor]]:
    """Record each layer's attention [images, heads, tokens, tokens] when the backbone runs inside the block.

    With `fused_attn` off, timm's layers compute it explicitly and pass it to `attn_drop`.
    """
    layers = [
        module
        for module in backbone.modules()
        if hasattr(module, "fused_attn") and isinstance(getattr(module, "attn_drop", None), nn.Module)
    ]
    attentions: list[Tensor] = []
    fused = [layer.fused_attn for layer in layers]
    handles = [
        layer.attn_drop.register_forward_pre_hook(lambda _, inputs: attentions.append(inputs[0].detach()))  # type: ignore[union-attr]
        for layer in layers
    ]
    try:
        for layer in layers:
            layer.fused_attn = False  # type: ignore[assignment]
        yield attentions
    finally:
        for layer, was in zip(layers, fused, strict=True):
            layer.fused_attn = was
        for handle in handles:
            handle.remove()


def _is_global(attentions: list[Tensor], features: Tensor) -> bool:
    """Whether every layer attends over all tokens of the backbone's output."""
    if features.ndim != 3 or not attentions:
        return False
    tokens = features.shape[1]
    return all(
        a.ndim == 4 and len(a) == len(features) and a.shape[2:] == (tokens, tokens) for a in attentions
    )
