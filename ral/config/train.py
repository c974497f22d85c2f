"""Parameters of the model and the training."""

from typing import Any, Literal

from pydantic import Field, model_validator

from ral.config.base import Section
from ral.config.losses import LossConfig
from ral.config.model import ModelConfig
from ral.config.sampler import SamplerConfig


class AugmentConfig(Section):
    """Random changes to a training image, drawn anew in every epoch; zero turns one off."""

    flip: float = Field(ge=0, le=1)
    """Chance of a left-right flip."""
    rotate: float = Field(ge=0, le=180)
    """Largest rotation, degrees either way."""
    shift: float = Field(ge=0, le=0.5)
    """Largest shift, as a share of the image's side."""
    zoom: float = Field(ge=0, lt=1)
    """Largest change of scale, either way."""


class ReweightConfig(Section):
    """Deferred re-weighting (Cao et al., LDAM-DRW, NeurIPS 2019): weights against rarity after a plain start."""

    from_epoch: int = Field(ge=0)
    """First epoch, counted from 0, in which findings are weighted. LDAM-DRW: after four fifths of them, when the features are learnt."""
    beta: float = Field(default=0.9999, gt=0, lt=1)
    """β of the effective number of images (Cui et al., 2019), whose inverse is the weight; 0.9999 as in LDAM-DRW."""


class ClassifierConfig(Section):
    """A second phase: the rest is frozen and the classifier learnt anew from a balanced sampler (cRT, Kang et al., ICLR 2020)."""

    epochs: int = Field(ge=1)
    """Epochs of the second phase. A linear classifier on frozen features needs few: the paper took a tenth of the first phase's."""
    learning_rate: float = Field(gt=0)
    """Its peak learning rate; it rises and falls as the first phase's does."""
    sampler: SamplerConfig = SamplerConfig(name="class_aware")
    """Its sampler; class_aware as in the paper."""


class TrainConfig(Section):
    """How the network is trained."""

    epochs: int = Field(ge=1)
    """Passes over the training images; the sampler says what one is."""
    batch_size: int = Field(ge=2)
    """Images per optimizer step over all processes together (the global batch). The images of an epoch are spread evenly over its batches, so a batch may have a few less."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Images per process and backward pass; smaller needs less memory. null: the process's whole share."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate of AdamW. 1e-4 at 256 images is where fine-tuning of a pretrained ConvNeXt starts; small networks from nothing take 1e-3 and more."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Weight decay of AdamW, on matrices only. 0.05 is what ConvNeXt and ViT were trained with."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps in which the learning rate rises; afterwards it falls along a cosine to zero. AdamW's first steps rest on few gradients, so they are kept small."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient; a longer one is scaled down to it. A batch with a rare finding gives now and then a gradient many times the usual one."""
    ema_decay: float | None = Field(default=0.999, gt=0, lt=1)
    """Share of the moving average of the weights (EMA) that a step keeps; null: no average. Scored beside the last weights in every epoch, for it is often better on rare findings. 0.999 looks back about 1,000 steps."""
    patience: int | None = Field(default=None, ge=1)
    """Epochs without a better validation macro AP after which training stops early; null: never. The cosine's last epochs are usually the best, so entrants train to its end."""
    sampler: SamplerConfig = SamplerConfig()
    """Which images an epoch holds. uniform: RAL deals with rarity in the loss, and a change of both at once cannot be told apart."""
    reweight: ReweightConfig | None = None
    """Deferred re-weighting; null: none, since most losses here weigh rarity themselves."""
    classifier: ClassifierConfig | None = None
    """Second phase for the classifier alone; null: none."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the network (bfloat16: autocast, weights stay float32); the loss is float32 in either case. On GPUs bfloat16 is two to three times as fast and loses nothing that could be measured."""
    compile: bool = False
    """Whether torch.compile is used: faster on GPUs after minutes of compiling; it changes rounding."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage: what is shared out between processes instead of held by each. 0: a network that fits is fastest whole."""
    deepspeed_config: dict[str, Any] = Field(default_factory=dict)
    """More settings for DeepSpeed, as in its JSON file. Those that other parameters decide are refused."""
    max_consecutive_skips: int = Field(default=10, ge=0)
    """Steps in a row that may be passed over because the loss or its gradient is not finite; one more ends the training. A single image can do that to one batch; ten in a row are no accident."""
    threads: int = Field(default=2, ge=1)
    """Processor threads of a training process. A parameter, since rounding depends on it."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of the initial weights, the order of images, the augmentation and dropout."""
    augment: AugmentConfig
    """Random changes to a training image."""

    @model_validator(mode="after")
    def _possible(self) -> "TrainConfig":
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch ({self.micro_batch}) must divide batch_size ({self.batch_size})")
        for name, instead in _DECIDED.items():
            part: Any = self.deepspeed_config
            for key in name.split("."):
                part = part.get(key) if isinstance(part, dict) else None
            if part is not None:
                raise ValueError(f"deepspeed_config may not set {name}: {instead} decides it")
        return self


# What DeepSpeed's file may not say, since other parameters decide it.
_DECIDED = {
    "train_batch_size": "batch_size",
    "train_micro_batch_size_per_gpu": "micro_batch",
    "gradient_accumulation_steps": "batch_size with micro_batch",
    "gradient_clipping": "clip_norm",
    "zero_optimization.stage": "zero_stage",
    "zero_optimization.offload_optimizer": "the optimizer, torch's fused AdamW,",
    "optimizer": "learning_rate and weight_decay",
    "scheduler": "warmup",
    "fp16": "precision",
    "bf16": "precision",
    "amp": "precision",
    "torch_autocast": "precision",
    "data_efficiency": "sampler",
    "curriculum_learning": "sampler",
}


class TrainParams(Section):
    """Read by the step train."""

    model: ModelConfig
    loss: LossConfig
    train: TrainConfig
