"""Parameter groups for AdamW: weight decay and layer-wise learning rate decay."""

from typing import TypedDict

from torch import nn

from ral.errors import UserError
from ral.models import Network, classifier, import_timm


class ParameterGroup(TypedDict):
    """A parameter group of a torch optimizer."""

    params: list[nn.Parameter]
    weight_decay: float
    lr_scale: float
    """Factor of the learning rate (layer-wise decay). A schedule must set `lr` to its rate × `lr_scale`."""
    lr: float


def parameter_groups(
    model: Network, weight_decay: float, learning_rate: float, layer_decay: float
) -> list[ParameterGroup]:
    """Group the trainable parameters by depth and weight decay.

    Weight decay is not applied to norms, biases and other one-dimensional parameters, nor to those that the
    backbone exempts (position embeddings, tokens). The learning rate of a layer is learning_rate ×
    layer_decay^(distance to the head); that of the head is learning_rate (BEiT, Bao et al., ICLR 2022; layers
    as defined by timm).

    Raises:
        UserError: layer_decay is not 1, and the user's own network does not say what its layers are.

    Returns:
        Groups whose `lr` is learning_rate × lr_scale.
    """
    if layer_decay != 1 and not hasattr(model.backbone, "group_matcher"):
        raise UserError(
            f"model.layer_decay: {type(model.backbone).__name__} has no method group_matcher, which says what "
            "its layers are. Set it to 1, or write the method as timm's models do."
        )
    depths = _depths(model)
    exempt = {f"backbone.{name}" for name in _exempt(model.backbone)}
    last = max(depths.values())
    groups: dict[tuple[float, bool], ParameterGroup] = {}
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
    """Depth of each parameter by name: 0 is the first layer, the maximum is the head."""
    backbone = model.backbone
    if hasattr(backbone, "group_matcher"):
        timm = import_timm()
        backbone_depths = timm.models.group_parameters(
            backbone, backbone.group_matcher(coarse=False), reverse=True
        )
    else:  # the user's own network, as one layer
        backbone_depths = {name: 0 for name, _ in backbone.named_parameters()}
    last = max(backbone_depths.values()) + (model.head is not None)
    depths = {f"backbone.{name}": depth for name, depth in backbone_depths.items()}
    head = {id(parameter) for parameter in classifier(model).parameters()}
    return {
        name: last if id(parameter) in head else depths[name] for name, parameter in model.named_parameters()
    }


def _exempt(backbone: nn.Module) -> set[str]:
    names = getattr(backbone, "no_weight_decay", set)
    return set(names())
