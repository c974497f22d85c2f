"""The network: a timm backbone and a head with one output per finding."""

import copy
import difflib
import os
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ral.config.model import ModelConfig
from ral.errors import UserError
from ral.models.heads import CSRA, MLDecoder
from ral.models.pretrained import check_loaded, find_weights, read_weights

# Keeps the operators below declared for the life of the process.
_declared: list[torch.library.Library] = []


class Network(nn.Module):
    """From gray images [batch, 1, height, width], normalised by the data's own mean and deviation, to logits.

    With 3 channels the image is repeated. The mean and deviation of the backbone's pretraining are not applied on top:
    they gave its pictures mean 0 and deviation 1 per channel, which the data's own give the images.

    Args:
        backbone: a timm model; with its own classifier if there is no other head.
        head: takes the backbone's map as [batch, positions, features]; None: the backbone gives logits.
        channels: input channels of the backbone.
        weights_sha256: of the file of pretrained weights; None if there was none.
    """

    backbone: Any  # a timm model has more than torch's type of a module tells
    head: nn.Module | None

    def __init__(
        self, backbone: nn.Module, head: nn.Module | None, channels: int, weights_sha256: str | None
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.channels = backbone, head, channels
        self.weights_sha256 = weights_sha256

    def forward(self, images: Tensor) -> Tensor:
        """Raw logits [batch, findings]."""
        if self.channels > 1:
            images = images.expand(-1, self.channels, -1, -1)
        features = self.backbone(images)
        return features if self.head is None else self.head(positions(self.backbone, features))


def build_model(config: ModelConfig, findings: int) -> Network:
    """Build the network; what is not loaded is drawn with torch's seed as it stands.

    Args:
        config: the section model.
        findings: number of outputs.

    Raises:
        UserError: timm has no such model, the model does not take an option, or the pretrained weights are missing
            or not its own.
    """
    timm = import_timm()
    require_backbone(config.backbone, timm)
    backbone, digest = _backbone(config, findings, timm)
    model = Network(backbone, _head(config, backbone, findings), config.channels, digest)
    if config.gradient_checkpointing:
        try:
            backbone.set_grad_checkpointing(True)
        except (AttributeError, AssertionError, NotImplementedError, TypeError):
            raise UserError(
                f"model.gradient_checkpointing: {config.backbone} does not support it. Set it to false, or make "
                "train.micro_batch smaller."
            ) from None
    return model


def classifier(model: Network) -> nn.Module:
    """The part that turns features into logits: the head, or the backbone's own classifier."""
    if model.head is not None:
        return model.head
    found = model.backbone.get_classifier()
    # Distilled networks have two.
    return nn.ModuleList(found) if isinstance(found, tuple | list) else found


def reset_classifier(model: Network, seed: int) -> None:
    """Draw the classifier anew in place, as a function of the seed alone: on the CPU, whatever the device."""
    part = classifier(model)
    fresh = copy.deepcopy(part).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        whole = hasattr(fresh, "reset_parameters")
        for module in [fresh] if whole else fresh.modules():
            reset = getattr(module, "reset_parameters", None)
            if reset:
                reset()
    part.load_state_dict(fresh.state_dict())


def positions(backbone: nn.Module, features: Tensor) -> Tensor:
    """A backbone's unpooled output as [batch, positions, features], without class and other prefix tokens."""
    if features.ndim == 3:
        return features[:, getattr(backbone, "num_prefix_tokens", 0) :]
    if getattr(backbone, "output_fmt", "NCHW") == "NHWC":
        return features.flatten(1, 2)
    return features.flatten(2).transpose(1, 2)


def _backbone(config: ModelConfig, findings: int, timm: Any) -> tuple[Any, str | None]:
    """The timm model, without pooling and classifier if another head follows, and the SHA-256 of its weights."""
    arguments: dict[str, Any] = {**config.options, "in_chans": config.channels, "num_classes": findings}
    if config.head != "linear":
        arguments |= {"num_classes": 0, "global_pool": ""}
    if config.drop_path:
        arguments["drop_path_rate"] = config.drop_path
    path = find_weights(config, timm)
    with torch.random.fork_rng(devices=[], enabled=path is not None):
        try:
            backbone = timm.create_model(config.backbone, **arguments)
        except (TypeError, ValueError, AssertionError) as error:
            shown = {
                name: value for name, value in arguments.items() if name not in ("in_chans", "num_classes")
            }
            key = "model.options" if config.head == "linear" else "model.options or model.head"
            raise UserError(f"{key}: {config.backbone} cannot be built with {shown}: {error}") from None
    if path is None:
        return backbone, None
    tensors, digest = read_weights(path)
    fresh = backbone
    try:
        backbone = timm.create_model(
            config.backbone, pretrained=True, pretrained_cfg_overlay={"state_dict": tensors}, **arguments
        )
    except (RuntimeError, KeyError, AttributeError, ValueError, TypeError) as error:
        raise UserError(
            f"model.pretrained: the weights in {path} do not fit {config.backbone} with {config.options}: "
            f"{str(error)[:500]}"
        ) from None
    backbone.pretrained_cfg["state_dict"] = None  # else every copy of the model copies the file's tensors too
    check_loaded(backbone, fresh, path, config.backbone)
    return backbone, digest


def _head(config: ModelConfig, backbone: nn.Module, findings: int) -> nn.Module | None:
    if config.head == "linear":
        return None
    width = _width(config, backbone)
    if config.head == "csra":
        return CSRA(width, findings, config.csra.heads, config.csra.lamb)
    return MLDecoder(width, findings, config.ml_decoder.groups, config.ml_decoder.embedding)


def _width(config: ModelConfig, backbone: Any) -> int:
    """Channels of the backbone's map, seen on a blank image: attributes of that name mean other things in some."""
    size = config.options.get("img_size", list(backbone.pretrained_cfg["input_size"][1:]))
    height, width = size if isinstance(size, list) else (size, size)
    backbone.eval()
    with torch.no_grad():
        features = backbone(torch.zeros(1, config.channels, int(height), int(width)))
    backbone.train()
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise UserError(f"model.head: {config.backbone} gives no feature map. Use `linear`.")
    return positions(backbone, features).shape[2]


def require_backbone(name: str, timm: Any) -> None:
    """Check that timm has a model.

    Raises:
        UserError: it has none of this name; the message has the nearest ones.
    """
    if timm.is_model(name):
        return
    base, models = name.split(".")[0], timm.list_models()
    near = difflib.get_close_matches(base, models, n=5) or timm.list_models(f"*{base}*")[:5]
    similar = f"Similar: {', '.join(near)}. " if near else ""
    raise UserError(
        f"model.backbone: timm {timm.__version__} has no model `{name}`. "
        f"{similar}All: python -c 'import timm; print(timm.list_models())'."
    )


def import_timm() -> ModuleType:
    """Import timm where torchvision is built for CUDA and torch is not.

    Package registries hold torchvision only with CUDA; beside a CPU torch its import fails because two of its
    operators were never declared. timm needs neither of them, so they are declared here, without a body.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # the hub's client reads it when timm imports it
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
