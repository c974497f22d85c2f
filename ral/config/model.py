"""Parameters of the network: backbone, head, pretrained weights."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ral.config.base import NullIsEmpty, Section
from ral.user_code import check_class_path

# Arguments of timm.create_model that other keys set, or that would bypass the checks of `pretrained`.
_RESERVED = {
    "in_chans": "model.channels",
    "num_classes": "the data",
    "global_pool": "model.head",
    "pretrained": "model.pretrained",
    "pretrained_cfg": "model.pretrained",
    "pretrained_cfg_overlay": "model.pretrained",
    "checkpoint_path": "model.pretrained",
    "cache_dir": "model.pretrained",
}


class MLDecoderOptions(Section):
    """ML-Decoder (Ridnik et al., WACV 2023, arXiv 2111.12933): a query per group of findings."""

    groups: int = Field(default=100, ge=1)
    """Maximum number of queries; findings are divided evenly among them. 100 (the authors' default) gives
    each finding its own query in all chest X-ray data sets."""
    embedding: int = Field(default=768, ge=8, multiple_of=8)
    """Decoder width (8 attention heads). 768 is the authors' default, also used by the CXR-LT 2023 winner."""


class CSRAOptions(Section):
    """Class-specific residual attention (Zhu and Wu, ICCV 2021): average pooling plus peak attention."""

    heads: Literal[1, 2, 4, 6, 8] = 1
    """Number of attention heads, from softmax to maximum. 1: as in the CXR-LT 2026 entry with this head;
    more heads need more memory."""
    lamb: float = Field(default=0.1, ge=0)
    """Weight λ of attention relative to average pooling. 0.1: the authors' value for small data sets, also
    used by the CXR-LT 2026 entry."""


class ModelConfig(Section):
    """The network: a timm backbone and a classification head."""

    backbone: str = Field(min_length=1)
    """timm model name, with or without a pretrained tag (convnext_small.fb_in22k_ft_in1k); or your own class, as
    package.module:Class (docs/own_loss_or_network.md)."""
    options: Annotated[dict[str, int | float | str | bool | list[int]], NullIsEmpty] = Field(
        default_factory=dict
    )
    """Keyword arguments for timm.create_model (channels, img_size, …), or for your own class."""
    channels: Literal[1, 3] = 1
    """Input channels of the backbone. 1 is cheaper and equivalent at initialization: pretrained
    first-layer weights are summed over the colour channels. 3 repeats the gray image, for backbones
    whose first layer cannot be adapted."""
    pretrained: str = Field(default="none", min_length=1)
    """Initial weights: none, hub, or a file. none: random initialization (no network access needed). hub:
    timm's weights from the Hugging Face Hub. A file: the path of a .safetensors file for this backbone,
    timm's or model.safetensors of an earlier training. The classifier is always initialized randomly. At 224
    pixels and above, pretrained weights are usual."""
    head: Literal["linear", "ml_decoder", "csra"] = "linear"
    """linear: the backbone's own pooling and classifier. ml_decoder: as the CXR-LT 2023 winner. csra: as a
    leading CXR-LT 2026 entry. The default is linear: the others need feature maps larger than the 2 × 2
    of the default configuration."""
    ml_decoder: MLDecoderOptions = MLDecoderOptions()
    """Options of ml_decoder."""
    csra: CSRAOptions = CSRAOptions()
    """Options of csra."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic depth: drop probability at the last layer, increasing linearly from 0 at the first. 0 for
    small networks, which underfit; 0.1 to 0.2 for pretrained ones (CXR-LT 2026: 0.2)."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Layer-wise learning rate decay: factor from each layer to the one before it. 1 (none) for random
    initialization; 0.7 to 0.9 for pretrained networks (BEiT: 0.75)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about one third more time. BatchNorm then
    updates its running statistics twice per batch."""

    @model_validator(mode="after")
    def _possible(self) -> "ModelConfig":
        for name in self.options:
            if name in _RESERVED:
                raise ValueError(f"options: `{name}` cannot be set here; it is set by {_RESERVED[name]}")
        if self.drop_path and "drop_path_rate" in self.options:
            raise ValueError("drop_path and options.drop_path_rate are the same setting: remove one")
        if ":" in self.backbone:
            try:
                check_class_path(self.backbone)
            except ValueError as error:
                raise ValueError(f"backbone: {error}") from None
            if self.head != "linear":
                raise ValueError("a network of your own has its own classifier: set head to linear")
            if self.pretrained == "hub":
                raise ValueError("a network of your own has no weights on the hub: give a file, or none")
        if self.pretrained not in ("none", "hub") and not self.pretrained.endswith(".safetensors"):
            raise ValueError(
                f"pretrained must be none, hub or the path of a .safetensors file, but it is {self.pretrained!r} "
                "(loading a pickled checkpoint can execute code; convert its weights to safetensors)"
            )
        return self
