"""Builds a trainer and the parts that it is given."""

from ral.data.dataset import Dataset
from ral.inference.bank import require_linear
from ral.inference.score import Scorer
from ral.models.custom import check_network
from ral.training.backend import compile_works
from ral.training.checkpoint import Checkpoints
from ral.training.distributed import DistributedContext
from ral.training.metric_logger import DVCLive, MetricLogger, MetricSink, TensorBoard
from ral.training.phase import build_network
from ral.training.spec import TrainSpec
from ral.training.state import PreemptionFlag
from ral.training.trainer import Trainer
from ral.training.validation import Validator


def build_trainer(
    spec: TrainSpec,
    dataset: Dataset,
    context: DistributedContext,
    checkpoints: Checkpoints,
    stop: PreemptionFlag,
) -> Trainer:
    """The trainer of a specification. All ranks must call it.

    Args:
        spec: the specification.
        dataset: the prepared data.
        context: rank, world size and device.
        checkpoints: where to save checkpoints and resume from.
        stop: set when training is to stop.

    Raises:
        UserError: the network cannot be built, or no finding can be measured in validation.
    """
    params, findings = spec.params, len(dataset.findings)
    network = build_network(params, findings)
    check_network(network, params.model, findings, dataset.info.size)
    if params.train.classifier is not None and params.train.classifier.features == "bank":
        require_linear(network)  # now rather than after the first phase
    if params.train.compile and not compile_works(context.device):
        params = params.model_copy(update={"train": params.train.model_copy(update={"compile": False})})
    scorer = Scorer(network, dataset, params.train.compile, context.rank, context.world_size, context.device)
    validator = Validator(scorer, dataset, spec.min_positives)
    metric_logger = None
    if context.rank == 0:
        validator.log_findings()
        metric_logger = MetricLogger(spec.run, _sinks(spec))
    return Trainer(params, dataset, context, checkpoints, validator, metric_logger, stop)


def _sinks(spec: TrainSpec) -> list[MetricSink]:
    """The libraries that the metrics are logged with.

    Raises:
        UserError: one of them is not installed.
    """
    sinks: list[MetricSink] = []
    if spec.tensorboard:
        sinks.append(TensorBoard(spec.run / "tensorboard"))
    if spec.dvclive:
        sinks.append(DVCLive(spec.run / "dvclive"))
    return sinks
