"""The whole of params.yaml."""

from pydantic import Field

from ral.config.base import Section
from ral.config.data import DataConfig, PhantomConfig, PreprocessConfig, SplitConfig
from ral.config.evaluate import EvaluateConfig
from ral.config.explain import ExplainConfig
from ral.config.features import FeaturesConfig
from ral.config.gate import GateConfig
from ral.config.losses import LossConfig
from ral.config.model import ModelConfig
from ral.config.robustness import RobustnessConfig
from ral.config.train import TrainConfig


class ReportConfig(Section):
    """Content of the report."""

    title: str = Field(min_length=1)
    """Report title."""
    show_images: bool = True
    """Whether the report includes the gallery images. false for data whose terms forbid redistribution;
    explain.show_images: false omits them too."""


class ReportParams(Section):
    """Read by the step report, which shows the settings of the other steps."""

    phantom: PhantomConfig
    data: DataConfig
    split: SplitConfig
    preprocess: PreprocessConfig
    model: ModelConfig
    loss: LossConfig
    train: TrainConfig
    explain: ExplainConfig
    evaluate: EvaluateConfig
    robustness: RobustnessConfig = RobustnessConfig()
    report: ReportConfig


class Params(ReportParams):
    """All sections. Each step reads only its own (`PreprocessParams`, `TrainParams`, …), never gate."""

    gate: GateConfig
    features: FeaturesConfig = FeaturesConfig()
