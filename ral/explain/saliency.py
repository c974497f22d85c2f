"""Heat maps of images: Grad-CAM for networks with a feature map, attention rollout for vision transformers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ral.explain.features import NoMapError, feature_map, grid, logits_of
from ral.models import Network, positions

Method = Literal["grad_cam", "rollout"]


def grad_cam(network: Network, images: Tensor, finding: int) -> Tensor:
    """Where the backbone's last map raises the logit of a finding (Selvaraju et al., ICCV 2017, equations 1 and 2).

    α_k is the mean over the positions of ∂logit/∂A_k, and the map is ReLU(Σ_k α_k A_k).

    Args:
        network: in eval mode; its weights get no gradient.
        images: normalised, float32 [images, 1, height, width].
        finding: number of the output.

    Returns:
        Float32 [images, rows, columns] of the map, not negative, in units of the logit.
    """
    with torch.no_grad():
        features = feature_map(network, images)
    with torch.enable_grad():
        features = features.detach().requires_grad_()
        # A copy, since some classifiers work in place. Images do not touch each other in eval mode.
        logit = logits_of(network, features.clone())[:, finding].sum()
        (gradient,) = torch.autograd.grad(logit, features)
    values = positions(network.backbone, features.detach())
    weights = positions(network.backbone, gradient).mean(dim=1, keepdim=True)
    return functional.relu((weights * values).sum(dim=2)).unflatten(1, grid(network, features))


def rollout(network: Network, images: Tensor) -> Tensor:
    """Which positions reach the output through the attention of all layers; the same for every finding.

    The output reads the class token (with a second one for distillation) or the mean of the patches; the rows of
    `roll_out` of what it reads are averaged.

    Returns:
        Float32 [images, rows, columns] of the patches, in shares of the whole.

    Raises:
        NoMapError: the network has no such attention.
    """
    with torch.no_grad(), recorded_attention(network.backbone) as attentions:
        features = feature_map(network, images)
    if not _global(attentions, features):
        raise NoMapError(
            f"explain.method: rollout needs layers in which all tokens attend to each other; "
            f"{type(network.backbone).__name__} has others. Use auto or grad_cam."
        )
    prefix = getattr(network.backbone, "num_prefix_tokens", 0)
    reached = roll_out(attentions)
    if not reads_token(network):
        read = reached[:, prefix:]
    else:
        read = reached[:, : 2 if hasattr(network.backbone, "head_dist") else 1]
    return read.mean(dim=1)[:, prefix:].unflatten(1, grid(network, features))


def roll_out(attentions: Sequence[Tensor]) -> Tensor:
    """Attention rollout (Abnar and Zuidema, ACL 2020): the product over layers of ½ A + ½ I, A the mean over heads.

    The half stands for the residual connection.

    Args:
        attentions: per layer from the first, [images, heads, tokens, tokens]; rows sum to 1.

    Returns:
        [images, tokens, tokens]; row i is how much each input token reaches token i. Rows sum to 1.
    """
    one = torch.eye(attentions[0].shape[-1], device=attentions[0].device, dtype=attentions[0].dtype)
    reached = one.expand(len(attentions[0]), -1, -1)
    for attention in attentions:
        reached = (attention.mean(dim=1) + one) / 2 @ reached
    return reached


def choose_method(
    network: Network, wanted: Literal["auto", "grad_cam", "rollout"], image: Tensor
) -> tuple[Method | None, str | None]:
    """The method for a network: `wanted`, or for auto the one that it allows, rollout first.

    Args:
        network: in eval mode.
        wanted: the parameter explain.method.
        image: any image, [1, 1, height, width].

    Returns:
        The method and None; for auto, where the network allows neither, None and why.

    Raises:
        NoMapError: the network does not allow the method that was asked for.
    """
    try:
        with torch.no_grad(), recorded_attention(network.backbone) as attentions:
            features = feature_map(network, image)
        grid(network, features)
        if wanted == "rollout" or (wanted == "auto" and _global(attentions, features)):
            rollout(network, image)
            return "rollout", None
        if features.ndim == 3 and reads_token(network):
            raise NoMapError(
                f"explain.method: grad_cam sees nothing in {type(network.backbone).__name__}, whose output reads the "
                "class token and not the patches. Use auto, or another model.head."
            )
    except NoMapError as error:
        if wanted != "auto":
            raise
        return None, str(error)
    return "grad_cam", None


def reads_token(network: Network) -> bool:
    """Whether the output reads a class token instead of the patches."""
    return (
        network.head is None
        and getattr(network.backbone, "num_prefix_tokens", 0) > 0
        and getattr(network.backbone, "global_pool", "token") == "token"
    )


def enlarge(maps: Tensor, size: int) -> Tensor:
    """Maps [images, rows, columns] as [images, size, size]: bilinear, then by each one's maximum to 0..1.

    A map that is 0 everywhere stays so.
    """
    large = functional.interpolate(maps.unsqueeze(1), size=(size, size), mode="bilinear", align_corners=False)
    large = large.squeeze(1)
    peak = large.amax(dim=(1, 2), keepdim=True)
    return torch.where(peak > 0, large / peak.clamp_min(torch.finfo(large.dtype).tiny), 0.0)


@contextmanager
def recorded_attention(backbone: nn.Module) -> Iterator[list[Tensor]]:
    """Collect each layer's attention [images, heads, tokens, tokens] while the block runs the backbone.

    timm's layers compute it explicitly when their `fused_attn` is off, and hand it to `attn_drop`.
    """
    layers = [
        module
        for module in backbone.modules()
        if hasattr(module, "fused_attn") and isinstance(getattr(module, "attn_drop", None), nn.Module)
    ]
    found: list[Tensor] = []
    fused = [layer.fused_attn for layer in layers]
    handles = [
        layer.attn_drop.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].detach()))  # type: ignore[union-attr]
        for layer in layers
    ]
    try:
        for layer in layers:
            layer.fused_attn = False  # type: ignore[assignment]
        yield found
    finally:
        for layer, was in zip(layers, fused, strict=True):
            layer.fused_attn = was
        for handle in handles:
            handle.remove()


def _global(attentions: list[Tensor], features: Tensor) -> bool:
    """Whether every layer attends over all the tokens that the backbone gives."""
    if features.ndim != 3 or not attentions:
        return False
    tokens = features.shape[1]
    return all(
        a.ndim == 4 and len(a) == len(features) and a.shape[2:] == (tokens, tokens) for a in attentions
    )
