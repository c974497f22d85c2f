"""The network: a timm backbone and a head with one output per finding."""

import copy
import os
import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ral.config.model import ModelConfig
from ral.errors import UserError
from ral.models.custom import build_custom
from ral.models.heads import CSRA, MLDecoder
from ral.models.pretrained import check_loaded, find_weights, read_weights
from ral.suggest import nearest
from ral.user_code import is_class_path

# Keeps the operators declared below alive for the lifetime of the process.
_declared: list[torch.library.Library] = []


class _InFloat32(nn.Module):
    """A classifier that computes in float32 under autocast too: with logits of 8 bits, images would tie."""

    def forward(self, features: Tensor, *rest: Any, **options: Any) -> Any:
        """As without autocast."""
        kind = features.device.type
        if not torch.is_autocast_enabled(kind):
            return super().forward(features, *rest, **options)
        with torch.autocast(kind, enabled=False):
            return super().forward(features.float(), *rest, **options)


class Network(nn.Module):
    """Maps gray images [batch, 1, height, width], standardised by the data's mean and SD, to logits.

    With 3 channels the image is repeated. The mean and SD of the backbone's pretraining are not applied in
    addition: they standardised its images per channel, as the data's own mean and SD do here.

    Args:
        backbone: a timm model or the user's own network, with its own classifier if `head` is None.
        head: takes the feature map as [batch, positions, features]; None if the backbone returns logits.
        channels: input channels of the backbone.
        weights_sha256: SHA-256 of the file of pretrained weights; None without pretrained weights.

    Attributes:
        use_bfloat16: whether to compute in bfloat16 (autocast; weights stay float32), but for the classifier. Set here
            rather than around the call, because DeepSpeed's engine turns off an autocast context outside of it on GPUs.
    """

    backbone: Any  # timm models have attributes that nn.Module does not declare
    head: nn.Module | None

    def __init__(
        self, backbone: nn.Module, head: nn.Module | None, channels: int, weights_sha256: str | None
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.channels = backbone, head, channels
        self.weights_sha256 = weights_sha256
        self.use_bfloat16 = False

    def forward(self, images: Tensor) -> Tensor:
        """Raw logits [batch, findings]."""
        if not self.use_bfloat16:
            return self._logits(images)
        # No cache of converted weights: under ZeRO 3 a weight's tensor changes between uses.
        with torch.autocast(images.device.type, torch.bfloat16, cache_enabled=False):
            return self._logits(images)

    def _logits(self, images: Tensor) -> Tensor:
        if self.channels > 1:
            images = images.expand(-1, self.channels, -1, -1).contiguous(memory_format=torch.channels_last)
        features: Tensor = self.backbone(images)
        if self.head is None:
            return features
        logits: Tensor = self.head(positions(self.backbone, features))
        return logits


def build_model(config: ModelConfig, findings: int) -> Network:
    """Build the network. Weights that are not loaded are initialised with torch's current random state.

    Args:
        config: the section model.
        findings: number of outputs.

    Raises:
        UserError: timm has no such model, the model does not accept an option, or the pretrained weights are
            missing or do not fit; or see `build_custom`.
    """
    backbone: Any
    if is_class_path(config.backbone):
        backbone, digest = build_custom(config, findings)
    else:
        timm = import_timm()
        require_backbone(config.backbone, timm)
        backbone, digest = _backbone(config, findings, timm)
    model = Network(backbone, _head(config, backbone, findings), config.channels, digest)
    part = classifier(model)
    for module in part if isinstance(part, nn.ModuleList) else [part]:
        kind = type(module)
        # The same module, so that whatever already refers to it, and the names of its tensors, stay as they are.
        module.__class__ = type(f"Float32{kind.__name__}", (_InFloat32, kind), {})
    if config.gradient_checkpointing:
        try:
            backbone.set_grad_checkpointing(True)
        except (AttributeError, AssertionError, NotImplementedError, TypeError):
            raise UserError(
                f"model.gradient_checkpointing: {config.backbone} does not support it. Set it to false, or reduce "
                "train.micro_batch."
            ) from None
    return model


def classifier(model: Network) -> nn.Module:
    """The classifier module: the head, or the backbone's own classifier."""
    if model.head is not None:
        return model.head
    modules = model.backbone.get_classifier()
    # Distilled networks have two.
    return nn.ModuleList(modules) if isinstance(modules, tuple | list) else modules


def reset_classifier(model: Network, seed: int) -> None:
    """Reinitialise the classifier in place. The result depends on the seed only, not on the device."""
    part = classifier(model)
    fresh = copy.deepcopy(part).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        resets_itself = hasattr(fresh, "reset_parameters")
        for module in [fresh] if resets_itself else fresh.modules():
            reset = getattr(module, "reset_parameters", None)
            if reset:
                reset()
    part.load_state_dict(fresh.state_dict())


def positions(backbone: nn.Module, features: Tensor) -> Tensor:
    """A backbone's unpooled output as [batch, positions, features], without class or other prefix tokens."""
    if features.ndim == 3:
        return features[:, getattr(backbone, "num_prefix_tokens", 0) :]
    if getattr(backbone, "output_fmt", "NCHW") == "NHWC":
        return features.flatten(1, 2)
    return features.flatten(2).transpose(1, 2)


def _backbone(config: ModelConfig, findings: int, timm: Any) -> tuple[Any, str | None]:
    """The timm model, without pooling and classifier if there is a separate head, and the SHA-256 of its weights."""
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
            settings = {
                name: value for name, value in arguments.items() if name not in ("in_chans", "num_classes")
            }
            key = "model.options" if config.head == "linear" else "model.options or model.head"
            raise UserError(f"{key}: {config.backbone} cannot be built with {settings}: {error}") from None
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
    backbone.pretrained_cfg["state_dict"] = None  # otherwise every copy of the model copies these tensors too
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
    """Channels of the backbone's feature map, from a forward pass: timm's attributes for it are not consistent."""
    size = config.options.get("img_size", list(backbone.pretrained_cfg["input_size"][1:]))
    height, width = size if isinstance(size, list) else (size, size)
    backbone.eval()
    with torch.no_grad():
        features = backbone(torch.zeros(1, config.channels, int(height), int(width)))
    backbone.train()
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise UserError(f"model.head: {config.backbone} has no feature map. Use `linear`.")
    return positions(backbone, features).shape[2]


def require_backbone(name: str, timm: Any) -> None:
    """Check that timm has a model.

    Raises:
        UserError: it has none of this name; the message has the nearest ones.
    """
    if timm.is_model(name):
        return
    base, models = name.split(".")[0], timm.list_models()
    near = nearest(base, models, count=5) or timm.list_models(f"*{base}*")[:5]
    similar = f"Similar: {', '.join(near)}. " if near else ""
    raise UserError(
        f"model.backbone: timm {timm.__version__} has no model `{name}`. "
        f"{similar}All: python -c 'import timm; print(timm.list_models())'."
    )


def import_timm() -> ModuleType:
    """Import timm, even if torchvision is built for CUDA and torch is not.

    Package registries offer torchvision with CUDA only. With a CPU build of torch its import fails, because
    two of its operators are not declared. timm does not need them, so they are declared here without an
    implementation.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when timm imports huggingface_hub
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
