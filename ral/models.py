"""The network: a timm backbone with one input channel and one output per finding."""

import sys
from types import ModuleType

import torch
from torch import nn

from ral.config.train import ModelConfig
from ral.errors import UserError

# Keeps the operators below declared for the life of the process.
_declared: list[torch.library.Library] = []


def build_model(config: ModelConfig, findings: int) -> nn.Module:
    """Build the network with freshly drawn weights.

    Args:
        config: backbone and its options.
        findings: number of outputs.

    Returns:
        A module from films [batch, 1, size, size] to logits [batch, findings].

    Raises:
        UserError: timm has no such model, or the model does not take one of the options.
    """
    timm = import_timm()
    if not timm.is_model(config.backbone):
        near = timm.list_models(f"*{config.backbone.split('.')[0]}*")[:5] or timm.list_models("resnet*")[:5]
        raise UserError(
            f"model.backbone: timm {timm.__version__} has no model `{config.backbone}`. "
            f"Similar: {', '.join(near)}. All: python -c 'import timm; print(timm.list_models())'."
        )
    try:
        return timm.create_model(config.backbone, in_chans=1, num_classes=findings, **config.options)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(
            f"model.options: {config.backbone} cannot be built with {config.options}: {error}"
        ) from None


def import_timm() -> ModuleType:
    """Import timm where torchvision is built for CUDA and torch is not.

    Package registries hold torchvision only with CUDA; beside a CPU torch its import fails because two of its
    operators were never declared. timm needs neither of them, so they are declared here, without a body.
    """
    try:
        import timm
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] in ("torchvision", "timm")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)
        import timm
    return timm
