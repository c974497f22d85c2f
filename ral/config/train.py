"""Parameters of the model and the training."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ral.config.base import NullIsEmpty, Section
from ral.config.data import DataConfig
from ral.config.evaluate import EvaluateConfig
from ral.config.losses import LossConfig
from ral.config.model import ModelConfig
from ral.config.sampler import SamplerConfig
from ral.config.second_phase import SECOND_PHASE_OPTIONS, SecondPhaseMethod


class AugmentConfig(Section):
    """Random augmentation of training images, drawn anew in every epoch; 0 disables a transform."""

    flip: float = Field(ge=0, le=1)
    """Probability of a horizontal flip."""
    rotate: float = Field(ge=0, le=180)
    """Maximum rotation in degrees, in either direction."""
    shift: float = Field(ge=0, le=0.5)
    """Maximum translation, as a fraction of the image side."""
    zoom: float = Field(ge=0, lt=1)
    """Maximum relative change of scale, in either direction."""


class ReweightConfig(Section):
    """Deferred re-weighting (Cao et al., LDAM-DRW, NeurIPS 2019): class weights after an initial phase
    without them."""

    from_epoch: int = Field(ge=0)
    """First epoch (from 0) with class weights. LDAM-DRW: after 80 % of the epochs, when features have been
    learned."""
    beta: float = Field(default=0.9999, gt=0, lt=1)
    """β of the effective number of images (Cui et al., 2019), whose inverse is the weight; 0.9999 as in
    LDAM-DRW."""


class ClassifierConfig(Section):
    """Second phase: the classifier is retrained, all other weights frozen; by default with a balanced sampler (cRT,
    Kang et al., ICLR 2020)."""

    method: SecondPhaseMethod = "crt"
    """crt: with the keys below. Others (docs/methods.md): with features: bank, and `options` in place of the keys
    below."""
    options: Annotated[dict[str, object], NullIsEmpty] = Field(default_factory=dict)
    """Options of another method than crt, by name."""
    epochs: int | None = Field(default=None, ge=1)
    """Epochs of cRT, needed with it. A linear classifier on frozen features needs few: the paper used a tenth
    of the first phase. With features: bank, the epochs that the sampler draws; an image counts as often as it
    occurs in them."""
    features: Literal["live", "bank"] = "live"
    """live: the frozen network runs on augmented images in every epoch. bank: it runs once on the training images
    without augmentation, and the classifier is fitted to these features (crt: the minimum of the weighted BCE). Seconds
    instead of minutes, but train.loss and augmentation have no part in it; for one linear layer only."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Peak learning rate of the second phase; same schedule as the first. Needed with features: live, not used
    with bank."""
    l2: float = Field(default=1e-3, gt=0)
    """With features: bank, weight of the penalty ½ |w|² for standardised features."""
    sampler: SamplerConfig = SamplerConfig(name="class_aware")
    """Sampler of the second phase, with the keys of train.sampler; class_aware as in the paper."""

    @model_validator(mode="after")
    def _keys_are_used(self) -> "ClassifierConfig":
        if self.method != "crt":
            if self.features != "bank":
                raise ValueError(f"method: {self.method} needs features: bank")
            for key in ("epochs", "learning_rate", "l2", "sampler"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(
                        f"method: {self.method} does not use {key}; its options are in `options`"
                    )
            SECOND_PHASE_OPTIONS[self.method].model_validate(self.options)
        elif self.options:
            raise ValueError("method: crt has no options: its keys are those of this section")
        elif self.epochs is None:
            raise ValueError("method: crt needs epochs")
        elif (self.learning_rate is None) != (self.features == "bank"):
            raise ValueError("features: live needs learning_rate; features: bank has none")
        return self


class AdversarialConfig(Section):
    """Adversarial training: in every step, each image is also changed within a few gray levels so that the loss rises
    most (projected gradient descent)."""

    eps: float = Field(default=1.0, ge=0, le=255)
    """Largest change of a pixel, in gray levels of 255; 0: ordinary training. 1 is hardly more than rounding; 8, usual
    for photographs, is visible on a radiograph."""
    steps: int = Field(default=3, ge=1)
    """Gradient steps of the attack; each costs a forward and a backward pass."""
    step: float | None = Field(default=None, gt=0)
    """Length of a gradient step, in gray levels; null: 2.5 eps / steps, which reaches the bound from anywhere."""
    loss: Literal["pgd", "trades", "comp_sum"] = "pgd"
    """pgd (Madry et al., ICLR 2018): the loss of the changed images. trades (Zhang et al., ICML 2019): the loss of the
    images plus the divergence of the changed images' scores from theirs. comp_sum (Mao et al., ICML 2023): plus the
    change of the logits, as in smooth adversarial comp-sum losses."""
    weight: float = Field(default=1.0, gt=0)
    """pgd: share of the loss of the changed images, at most 1; the rest is that of the images themselves. trades
    (authors: 6) and comp_sum: factor of the second term."""

    @model_validator(mode="after")
    def _share(self) -> "AdversarialConfig":
        if self.loss == "pgd" and self.weight > 1:
            raise ValueError(f"weight ({self.weight:g}) is a share with loss: pgd; at most 1")
        return self

    @property
    def step_levels(self) -> float:
        """Length of a gradient step, in gray levels."""
        return 2.5 * self.eps / self.steps if self.step is None else self.step


class TrainConfig(Section):
    """Optimization and training schedule."""

    epochs: int = Field(ge=1)
    """Number of epochs; the sampler defines what an epoch is."""
    batch_size: int = Field(ge=2)
    """Global batch size: images per optimizer step over all processes. Images are spread evenly over the
    batches of an epoch, so a batch may be slightly smaller."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Images per process and backward pass; smaller values need less memory. null: the process's whole
    part of the batch."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate of AdamW. Fine-tuning a pretrained ConvNeXt: 1e-4 at batch size 256; small
    networks from random initialization: 1e-3 and above."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Weight decay of AdamW, applied to matrices only. 0.05 as for ConvNeXt and ViT."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of all steps for linear warmup; a cosine decay to zero follows. AdamW's first steps rest on
    few gradients, so they are kept small."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Maximum gradient norm (gradient clipping). Batches with a rare finding occasionally give a gradient
    many times the usual one."""
    ema_decay: float | None = Field(default=0.999, gt=0, lt=1)
    """Decay of the exponential moving average (EMA) of the weights; null: no EMA. Evaluated beside the raw
    weights after every epoch: it is often better on rare findings. 0.999 averages over about 1,000
    steps, for long trainings; 0.99 over 100, for a few hundred steps in total."""
    patience: int | None = Field(default=None, ge=1)
    """Early stopping: epochs without improvement of validation macro AP; null: off. With a cosine schedule
    the last epochs are usually the best."""
    sampler: SamplerConfig = SamplerConfig()
    """Which images an epoch contains. uniform: RAL handles rarity in the loss, and the effects of changing
    both could not be separated."""
    reweight: ReweightConfig | None = None
    """Deferred re-weighting; null: off, since most losses here account for rarity themselves."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share ε of every label that is replaced by the finding's prevalence π in training: (1 − ε) y + ε π. 0: off. The
    usual 1/2 in place of π would score a finding of 0.2 % as one of 5 % (ε = 0.1)."""
    mixup: float = Field(default=0.0, ge=0)
    """Mixup (Zhang et al., ICLR 2018): α of Beta(α, α), the share of an image in its mixture with another of its batch,
    drawn for each batch. 0: off; usual are 0.1 to 0.4."""
    adversarial: AdversarialConfig | None = None
    """Adversarial training; null: off. With steps 3 an epoch takes about four times as long."""
    classifier: ClassifierConfig | None = None
    """Second phase that retrains only the classifier; null: off."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Precision of the network (bfloat16: autocast with float32 weights); classifier and loss are always float32.
    bfloat16 is two to three times as fast on GPUs, and about 1.4 times on processors with instructions for it
    (avx512_bf16, amx_bf16), with no measurable loss of accuracy."""
    compile: bool = False
    """Use torch.compile: faster on GPUs after a minute of compilation; changes rounding. Where it does not work (it
    needs a C compiler) training runs without it, with a warning."""
    cuda_math: Literal["deterministic", "fast"] = "deterministic"
    """Arithmetic on GPUs. deterministic: the same result on the same GPU (deterministic algorithms, float32 without
    TF32). fast: TF32 and cuDNN's autotuning; results differ between runs."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage: what is sharded across processes instead of replicated. 0 is fastest for a
    network that fits in memory."""
    deepspeed_config: Annotated[dict[str, Any], NullIsEmpty] = Field(default_factory=dict)
    """Additional DeepSpeed settings, as in its JSON file. Settings controlled by other parameters are
    refused."""
    max_consecutive_skips: int = Field(default=10, ge=0)
    """Maximum number of consecutive steps skipped because loss or gradient is not finite; one more ends
    the training. A single image can cause one such batch; ten in a row indicate a real problem."""
    threads: int = Field(default=2, ge=1)
    """Processor threads per training process. A parameter because it affects rounding."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Random seed of initialization, image order, augmentation and dropout."""
    augment: AugmentConfig
    """Random augmentation of training images."""

    @model_validator(mode="after")
    def _possible(self) -> "TrainConfig":
        if self.micro_batch and self.batch_size % self.micro_batch:
            raise ValueError(f"micro_batch ({self.micro_batch}) must divide batch_size ({self.batch_size})")
        if self.adversarial is not None and self.zero_stage == 3:
            raise ValueError(
                "adversarial needs zero_stage 0, 1 or 2: the attack runs the whole network on its own"
            )
        for name, instead in _DECIDED.items():
            part: Any = self.deepspeed_config
            for key in name.split("."):
                part = part.get(key) if isinstance(part, dict) else None
            if part is not None:
                raise ValueError(f"deepspeed_config may not set {name}: {instead} decides it")
        return self


# Keys not allowed in the DeepSpeed configuration, with the parameters that control them.
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


class ManifestParams(Section):
    """Read by the step manifest."""

    data: DataConfig
    model: ModelConfig
    loss: LossConfig


class TrainParams(Section):
    """What a training needs to know."""

    model: ModelConfig
    loss: LossConfig
    train: TrainConfig


class TrainStageParams(TrainParams):
    """Read by the step train."""

    evaluate: EvaluateConfig
    """For min_positives: validation metrics are averaged over the same findings as those of the evaluation."""

    def training(self) -> TrainParams:
        """The sections of a training."""
        return TrainParams(model=self.model, loss=self.loss, train=self.train)
