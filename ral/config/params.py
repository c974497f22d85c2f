"""The whole of params.yaml."""

from pydantic import Field

from ral.config.base import Section
from ral.config.data import DataConfig, PhantomConfig, PreprocessConfig, SplitConfig
from ral.config.evaluate import EvaluateConfig
from ral.config.explain import ExplainConfig
from ral.config.gate import GateConfig
from ral.config.losses import LossConfig
from ral.config.train import ModelConfig, TrainConfig


class ReportConfig(Section):
    """What the report shows."""

    title: str = Field(min_length=1)
    """Title of the report."""
    show_images: bool = True
    """Whether the report has the pictures of the gallery. false, for data whose terms forbid to pass images on; explain.show_images false leaves them out too."""


class ReportParams(Section):
    """Read by the step report, which shows what the other steps were run with."""

    phantom: PhantomConfig
    data: DataConfig
    split: SplitConfig
    preprocess: PreprocessConfig
    model: ModelConfig
    loss: LossConfig
    train: TrainConfig
    explain: ExplainConfig
    evaluate: EvaluateConfig
    report: ReportConfig


class Params(ReportParams):
    """Every section. A step reads only its own (`PreprocessParams`, `TrainParams`, …), and none the gate's."""

    gate: GateConfig
