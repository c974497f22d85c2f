"""Parameters of the network: backbone, head, pretrained weights."""

from typing import Literal

from pydantic import Field, model_validator

from ral.config.base import Section

# Arguments of timm.create_model that other keys set, or that would load weights past the checks of `pretrained`.
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
    """ML-Decoder (Ridnik et al., WACV 2023, arXiv 2111.12933): a query per group of findings looks at the whole image."""

    groups: int = Field(default=100, ge=1)
    """Most queries; findings share them out evenly. 100, the authors' default, gives each finding its own in all chest X-ray sets."""
    embedding: int = Field(default=768, ge=8, multiple_of=8)
    """Width of the decoder, 8 attention heads. 768 is the authors' default, and what the CXR-LT 2023 winner used."""


class CSRAOptions(Section):
    """Class-specific residual attention (Zhu and Wu, ICCV 2021): mean over the image plus attention to its peaks."""

    heads: Literal[1, 2, 4, 6, 8] = 1
    """Attention heads, from softmax to maximum. 1: as the CXR-LT 2026 entry with this head had it; more need more memory."""
    lamb: float = Field(default=0.1, ge=0)
    """Weight λ of the attention beside the mean. 0.1 is the authors' for small data sets, and the CXR-LT 2026 entry's."""


class ModelConfig(Section):
    """The network."""

    backbone: str = Field(min_length=1)
    """Any model name of timm, with or without the tag of its pretrained weights (convnext_small.fb_in22k_ft_in1k)."""
    options: dict[str, int | float | str | bool | list[int]] = Field(default_factory=dict)
    """Keyword arguments passed on to timm.create_model (channels, img_size, …)."""
    channels: Literal[1, 3] = 1
    """Input channels of the backbone; 3 repeats the gray image. 1 costs less and starts from the same function: pretrained weights of the first layer are summed over the colours. 3 is for backbones whose first layer cannot be adapted."""
    pretrained: str = Field(default="none", min_length=1)
    """none: drawn anew. hub: the weights timm names, from the Hugging Face hub. Else the path of a local .safetensors file of this backbone: timm's, or model.safetensors of an earlier training. The classifier is always drawn anew. none, since a run must not need the network; at 224 pixels and above, pretrained weights are the usual start."""
    head: Literal["linear", "ml_decoder", "csra"] = "linear"
    """linear: the backbone's own pooling and classifier. ml_decoder: as the CXR-LT 2023 winner. csra: as a leading CXR-LT 2026 entry. linear, since the others pay on maps larger than a laptop's 2 × 2."""
    ml_decoder: MLDecoderOptions = MLDecoderOptions()
    """Options of ml_decoder."""
    csra: CSRAOptions = CSRAOptions()
    """Options of csra."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Chance that a residual block of the last layer is skipped in training, rising from 0 at the first (stochastic depth). 0, since small networks underfit; 0.1 to 0.2 suits pretrained ones (CXR-LT 2026: 0.2)."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor on the learning rate from a layer to the one before it. 1, none, for a network drawn anew; 0.7 to 0.9 keeps the first layers of a pretrained one (0.75 in BEiT)."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, about a third more time. BatchNorm then counts each batch twice in its running mean."""

    @model_validator(mode="after")
    def _possible(self) -> "ModelConfig":
        for name in self.options:
            if name in _RESERVED:
                raise ValueError(f"options: `{name}` is not passed on; {_RESERVED[name]} sets it")
        if self.drop_path and "drop_path_rate" in self.options:
            raise ValueError("drop_path and options.drop_path_rate say the same: leave one out")
        if self.pretrained not in ("none", "hub") and not self.pretrained.endswith(".safetensors"):
            raise ValueError(
                f"pretrained is none, hub or the path of a .safetensors file, but it is {self.pretrained!r} "
                "(a pickled checkpoint can run code when it is opened; save its weights with safetensors)"
            )
        return self
