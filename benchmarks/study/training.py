"""One run of the study: trains with the project's trainer and measures the selection set and the test fold."""

import io
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor, nn

from benchmarks.study import folds
from benchmarks.study.authors import ConstantBatches, PrecisionValidator, jittered
from benchmarks.study.folds import StudyData
from benchmarks.study.plan import Run
from benchmarks.study.recipes import DEFERRED, NETWORKS, Arm, arm
from benchmarks.study.table import digest
from ral.config.losses import LossConfig
from ral.config.model import ModelConfig
from ral.config.train import TrainConfig, TrainParams
from ral.data.dataset import Dataset
from ral.data.dataset_info import DatasetInfo, LabelCounts
from ral.data.images.pack import pixel_statistics
from ral.data.splits.thin import thin
from ral.files import atomic_write
from ral.inference.score import Scorer, ap_and_auroc, estimable_findings
from ral.models.inputs import channels_last
from ral.training.backend import set_cuda_math
from ral.training.checkpoint import Checkpoints
from ral.training.distributed import DistributedContext
from ral.training.phase import build_network
from ral.training.state import PreemptionFlag, TrainState
from ral.training.trainer import Trainer
from ral.training.validation import Validator

AUGMENT = {"flip": 0.5, "rotate": 8.0, "shift": 0.06, "zoom": 0.1}
# Of the authors' recipe: rotations up to 15 degrees; sharpness and erasing are added in `authors`.
AUTHORS_AUGMENT = {"flip": 0.5, "rotate": 15.0, "shift": 0.0, "zoom": 0.0}
# A norm that no gradient has: the authors do not clip.
UNCLIPPED = 1e30


def parameters(run: Run) -> TrainParams:
    """The sections model, loss and train of a run."""
    recipe = arm(run.arm)
    backbone, network_options = NETWORKS.get(run.backbone, (run.backbone, {}))
    options = dict(recipe.options)
    if recipe.loss == "ldam":
        options["defer_epoch"] = round(DEFERRED * run.epochs)
    train: dict[str, object] = {
        "epochs": run.epochs, "batch_size": run.batch_size, "learning_rate": run.learning_rate, "warmup": 0.2,
        "ema_decay": None, "precision": run.precision, "threads": 1, "seed": run.seed, "augment": AUGMENT,
    }  # fmt: skip
    if recipe.authors_recipe:
        train |= {"weight_decay": 0.0, "clip_norm": UNCLIPPED, "augment": AUTHORS_AUGMENT}
    if recipe.classifier:
        train["classifier"] = {"epochs": max(1, run.epochs // 4), "learning_rate": run.learning_rate}
    return TrainParams(
        model=ModelConfig(backbone=backbone, options=network_options),
        loss=LossConfig.model_validate({"name": recipe.loss, "adjust": recipe.adjust, recipe.loss: options}),
        train=TrainConfig.model_validate(train | dict(recipe.train)),
    )


def fold_dataset(data: StudyData, pixels: np.ndarray, state: Path, run: Run) -> Dataset:
    """The images of a run with its split; statistics of labels and pixels are those of its training images.

    The stage thin has fewer training images, the stage control permuted labels in training and selection set.
    """
    split, targets = data.split(run.fold), data.targets
    if run.stage == "control":
        targets = targets.copy()
        for part in ("train", "val"):
            rows = split == part
            targets[rows] = folds.permute(targets[rows], data.patient_id[rows], run.seed)
    training = split == "train"
    if run.stage == "thin":
        order = data.patient_order("thin")
        kept = thin(targets[training], data.patient_id[training], order[training], run.thin)
        split[np.flatnonzero(training)[~kept]] = "thinned"
        training = split == "train"
    studies = pd.DataFrame({"image_id": data.image_id, "patient_id": data.patient_id, "split": split})
    studies = studies.join(pd.DataFrame(targets, columns=list(data.findings)))
    mean, deviation = pixel_statistics(data.sums[training], data.size)
    info = DatasetInfo.read(state / folds.INFO).model_copy(
        update={"pixel_mean": mean, "pixel_deviation": deviation}
    )
    counts = LabelCounts(
        images=int(training.sum()),
        **{
            kind: dict(zip(data.findings, same.sum(axis=0).tolist(), strict=True))
            for kind, same in (
                ("positives", targets[training] == 1),
                ("negatives", targets[training] == 0),
                ("unknown", np.isnan(targets[training])),
            )
        },
    )
    ids = pa.array(data.image_id.tolist(), pa.string())
    table = pa.Table.from_pandas(studies, preserve_index=False)
    return Dataset(info, {"train": counts}, (pixels,), (ids,), np.zeros(1, np.int64), state, table)


class Unstoppable(PreemptionFlag):
    """A run of minutes is not saved: it is killed and run again. Registers no signal handler."""

    def __init__(self) -> None:
        self.requested = self.exit_immediately = False


class StudyTrainer(Trainer):
    """The project's trainer without checkpoints; with the scale of the loss, and the authors' recipe if the arm is it.

    Args:
        params: sections model, loss and train.
        dataset: the images of the run.
        context: rank, world size and device.
        recipe: the arm.
        scale: factor on the loss.
    """

    def __init__(
        self, params: TrainParams, dataset: Dataset, context: DistributedContext, recipe: Arm, scale: float
    ) -> None:
        network = build_network(params, len(dataset.findings))
        self.weights = sum(weight.numel() for weight in network.parameters())
        scorer = Scorer(network, dataset, False, 0, 1, context.device)
        # In bfloat16, logits have eight bits: rare findings, whose logits are large, would be ranked with many ties.
        scorer.network.use_bfloat16 = False
        validator = (PrecisionValidator if recipe.authors_recipe else Validator)(scorer, dataset, 1)
        checkpoints = Checkpoints(dataset.folder / "checkpoints", 1, math.inf)
        super().__init__(params, dataset, context, checkpoints, validator, None, Unstoppable())
        self.recipe, self.scale = recipe, scale

    def load_checkpoint(self) -> dict[str, Tensor]:
        """There is none."""
        return {}

    def start_phase(self, tensors: dict[str, Tensor]) -> None:
        """Make the parts of the phase, with the arm's changes."""
        super().start_phase(tensors)
        self.parts.loss.loss.register_forward_hook(self._scaled)
        if self.recipe.authors_recipe:
            parts = self.parts
            batches = ConstantBatches(parts.phase, self.params, self.dataset, parts.loss, self.context)
            self.parts = replace(parts, batches=batches)
            parts.engine.module.register_forward_pre_hook(self._jittered)

    def _jittered(self, network: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        """The input of the network, sharpened and erased. The trainer has seeded torch for this batch."""
        images = (
            jittered(inputs[0], self.dataset.info, torch.default_generator) if network.training else inputs[0]
        )
        return (channels_last(images),)

    def _scaled(self, _: nn.Module, inputs: tuple[Tensor, Tensor], loss: Tensor) -> Tensor:
        """The loss times the scale; the authors' sum, which the project divides by the number of labels."""
        return loss * (inputs[1].numel() if self.recipe.authors_recipe else self.scale)

    def _train_and_validate(self) -> None:
        self.train_epoch()
        self.validate()


@dataclass(frozen=True)
class Place:
    """What a worker has for all its runs."""

    state: Path
    data: StudyData
    pixels: np.ndarray
    context: DistributedContext
    commit: str


class Trained(NamedTuple):
    """A training that has ended."""

    trainer: StudyTrainer
    dataset: Dataset
    state: TrainState
    seconds: float
    """Of the training alone."""
    rows: dict[str, np.ndarray]
    """Row numbers of the images of `test` and `selection`."""
    scores: dict[str, np.ndarray]
    """Logits of these images."""


def trained(run: Run, place: Place, scale: float) -> Trained:
    """Train a run and score the images of its test fold and of the selection set.

    Raises:
        UserError: the loss or the logits are not finite.
    """
    params = parameters(run)
    set_cuda_math(params.train)
    dataset = fold_dataset(place.data, place.pixels, place.state, run)
    trainer = StudyTrainer(params, dataset, place.context, arm(run.arm), scale)
    started = time.monotonic()
    final = trainer.train()
    seconds = time.monotonic() - started
    rows = scored_rows(dataset)
    return Trained(trainer, dataset, final, seconds, rows, _logits(trainer, final.best_weights(), rows))


def scored_rows(dataset: Dataset) -> dict[str, np.ndarray]:
    """Row numbers of the images of the test fold and of the selection set."""
    return {"test": dataset.rows("test"), "selection": dataset.rows("val")}


def packed(rows: Mapping[str, np.ndarray], scores: Mapping[str, np.ndarray]) -> bytes:
    """Content of the logits file of a run; equal logits give equal bytes."""
    stream = io.BytesIO()
    np.savez(
        stream, test_rows=rows["test"].astype(np.int32), test_logits=scores["test"],
        selection_rows=rows["selection"].astype(np.int32), selection_logits=scores["selection"],
    )  # fmt: skip
    return stream.getvalue()


def write_logits(path: Path, content: bytes) -> None:
    """Write a logits file."""
    with atomic_write(path) as draft:
        draft.write_bytes(content)


def train(run: Run, place: Place, scale: float, logits: Path) -> dict[str, str]:
    """Train a run, write its logits into the folder `logits`, and return its row of runs.csv.

    Raises:
        UserError: the loss or the logits are not finite.
    """
    started, data = time.monotonic(), place.data
    done = trained(run, place, scale)
    final, rows = done.state, done.rows
    content = packed(rows, done.scores)
    write_logits(logits / f"{run.name}.npz", content)
    images = len(done.dataset.rows("train"))
    return {
        "run": run.name, "stage": run.stage, "arm": run.arm, "fold": str(run.fold), "seed": str(run.seed),
        "learning_rate": f"{run.learning_rate:g}", "backbone": run.backbone,
        "parameters": str(done.trainer.weights),
        "image_size": str(data.size), "epochs": str(run.epochs), "batch_size": str(run.batch_size),
        "precision": run.precision, "thin": f"{run.thin:g}", "train_images": str(images),
        "selection_images": str(len(rows["selection"])), "test_images": str(len(rows["test"])),
        "best_epoch": str(final.best[final.best_kind()].epoch), **metrics(data, rows, done.scores),
        "seconds": f"{time.monotonic() - started:.1f}",
        "images_per_second": f"{images * len(final.history) / done.seconds:.0f}",
        **where(place), "data": data.sha256, "logits": digest(content),
    }  # fmt: skip


def where(place: Place) -> dict[str, str]:
    """The columns that say on what a run was trained."""
    return {
        "device": device_name(place.context.device),
        "torch": torch.__version__,
        "commit": place.commit,
    }


def _logits(
    trainer: StudyTrainer, weights: dict[str, Tensor], rows: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Logits float32 of the chosen weights, by part; with `flip`, means over each image and its mirror image."""
    scorer = trainer.validator.scorer
    scores = {part: scorer.score(weights, numbers) for part, numbers in rows.items()}
    if not trainer.recipe.flip:
        return scores
    mirrored = np.ascontiguousarray(trainer.dataset.shards[0][:, :, ::-1])
    scorer.dataset = replace(trainer.dataset, shards=(mirrored,))
    return {part: (scores[part] + scorer.score(weights, numbers)) / 2 for part, numbers in rows.items()}


def metrics(
    data: StudyData, rows: Mapping[str, np.ndarray], scores: Mapping[str, np.ndarray]
) -> dict[str, str]:
    """The columns of macro AP and AUROC in test and on the selection set."""
    columns: dict[str, str] = {}
    for part, numbers in rows.items():
        ap, auroc = _metrics(data, numbers, scores[part])
        columns |= {f"{part}_macro_ap": f"{ap:.6f}", f"{part}_macro_auroc": f"{auroc:.6f}"}
    return columns


def _metrics(data: StudyData, rows: np.ndarray, logits: np.ndarray) -> tuple[float, float]:
    """Macro AP and AUROC of logits against the true labels, over the findings that the rows have."""
    targets = data.targets[rows]
    usable = estimable_findings(targets, data.patient_id[rows], 1)
    ap, auroc = ap_and_auroc(targets[:, usable], logits[:, usable])
    return float(np.mean(ap)), float(np.mean(auroc))


def device_name(device: torch.device) -> str:
    """Name of the GPU or the processor, without commas."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names[0] if names else platform.processor() or platform.machine()).replace(",", " ")
