"""Groups of parameters for AdamW: what is decayed, and how fast each layer learns."""

from typing import Any

from torch import nn

from ral.models import Network, classifier, import_timm


def parameter_groups(
    model: Network, weight_decay: float, learning_rate: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Split the trainable parameters by depth and by whether they are decayed.

    Norms, biases and all else with one dimension are not decayed, since shrinking them only fights the data's own
    scale; nor is what the backbone exempts (position embeddings, tokens). A layer learns at
    learning_rate × layer_decay^(layers between it and the head); the head always at learning_rate (BEiT, Bao et al.,
    ICLR 2022; layers as timm counts them).

    Returns:
        Groups with `params`, `weight_decay`, `lr_scale` and `lr` = learning_rate × lr_scale. A schedule must set
        `lr` to its rate × `lr_scale`.
    """
    depths = _depths(model)
    exempt = {f"backbone.{name}" for name in _exempt(model.backbone)}
    last = max(depths.values())
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        scale = layer_decay ** (last - depths[name])
        decays = parameter.ndim > 1 and not name.endswith(".bias") and name not in exempt
        group = groups.setdefault(
            (scale, decays),
            {
                "params": [],
                "weight_decay": weight_decay if decays else 0.0,
                "lr_scale": scale,
                "lr": learning_rate * scale,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def _depths(model: Network) -> dict[str, int]:
    """Depth of each parameter by name: 0 is the layer at the image, the largest the head's."""
    timm = import_timm()
    backbone = model.backbone
    within = timm.models.group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True)
    last = max(within.values()) + (model.head is not None)
    depths = {f"backbone.{name}": depth for name, depth in within.items()}
    head = {id(parameter) for parameter in classifier(model).parameters()}
    return {
        name: last if id(parameter) in head else depths[name] for name, parameter in model.named_parameters()
    }


def _exempt(backbone: nn.Module) -> set[str]:
    listed = getattr(backbone, "no_weight_decay", set)
    return set(listed())
