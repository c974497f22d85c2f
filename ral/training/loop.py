"""The epochs: train, score validation, keep the best weights; then score validation and test with them."""

import copy
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn

from ral.config.train import TrainParams
from ral.data.augment import draw_transforms, transform
from ral.data.dataset import Dataset
from ral.errors import UserError
from ral.losses import ClassCounts, build_loss
from ral.progress import Progress
from ral.training import plan
from ral.training.engine import micro_batch_size

# Films per forward pass when scoring; no gradient is kept, and results do not depend on it beyond rounding.
SCORE_BATCH = 512


class Trainer:
    """One process's share of a training run.

    The loss is the mean over the known labels of a micro-batch, and the engine averages micro-batches: the mean over
    the global batch as long as no label is unknown.

    Args:
        engine: DeepSpeed's engine around the network.
        dataset: the prepared data.
        params: sections model, loss and train.
        rank: this process.
        world: number of processes.
        device: where the network is.
    """

    def __init__(
        self, engine: Any, dataset: Dataset, params: TrainParams, rank: int, world: int, device: torch.device
    ) -> None:
        self.engine, self.dataset, self.config = engine, dataset, params.train
        self.rank, self.world, self.device = rank, world, device
        name = params.loss.name
        counts = ClassCounts.of(dataset.class_counts["train"], dataset.findings)
        self.loss = build_loss(name, getattr(params.loss, name).model_dump(), counts).to(device)
        self.targets = dataset.targets()
        self.train_rows = dataset.rows("train")
        self.val_rows = dataset.rows("val")
        self.steps = plan.steps_per_epoch(len(self.train_rows), self.config.batch_size)
        if not self.steps:
            raise UserError(
                f"train.batch_size ({self.config.batch_size}) is larger than the {len(self.train_rows)} training "
                "films. Make it smaller."
            )
        self.micro_batch = micro_batch_size(self.config, world)
        self.dtype = torch.bfloat16 if self.config.precision == "bfloat16" else torch.float32

    def fit(self) -> tuple[list[dict[str, float]], dict[str, Tensor], int]:
        """Train for all epochs.

        Returns:
            One row of history per epoch, the weights with the best validation macro AP (float32, on the CPU),
            and the epoch they are from, counted from 1.

        Raises:
            UserError: the loss is no longer finite.
        """
        history: list[dict[str, float]] = []
        best: tuple[float, int, dict[str, Tensor]] = (-1.0, 0, {})
        total = self.config.epochs * self.steps * self.config.batch_size
        with Progress("training", total if self.rank == 0 else 0, "films") as progress:
            for epoch in range(self.config.epochs):
                train_loss = self._train_epoch(epoch, progress)
                logits = self.score(self.val_rows)
                if not np.isfinite(logits).all():
                    raise UserError(_NOT_FINITE.format(what="logits", epoch=epoch + 1))
                scores = validation_scores(self.targets[self.val_rows], logits)
                rate = plan.learning_rate(
                    (epoch + 1) * self.steps - 1,
                    self.config.epochs * self.steps,
                    self.config.learning_rate,
                    self.config.warmup,
                )
                row = {"epoch": epoch + 1, "learning_rate": rate, "train_loss": train_loss, **scores}
                history.append({name: round(value, 8) for name, value in row.items()})
                if self.rank == 0:
                    kind = "PHANTOM films, " if self.dataset.facts["phantom"] else ""
                    progress.say(
                        f"{kind}epoch {epoch + 1:3d} of {self.config.epochs}: loss {train_loss:.5f}, validation macro "
                        f"AP {scores['val_macro_ap']:.4f}, AUROC {scores['val_macro_auroc']:.4f}"
                    )
                if scores["val_macro_ap"] > best[0]:
                    best = scores["val_macro_ap"], epoch + 1, weights(self.engine.module)
        return history, best[2], best[1]

    def _train_epoch(self, epoch: int, progress: Progress) -> float:
        """One pass over the training films; returns the mean loss over its steps."""
        order = plan.epoch_order(self.train_rows, self.config.seed, epoch)
        size = self.config.batch_size
        losses = torch.zeros(self.steps, device=self.device)
        self.engine.train()
        self.loss.set_epoch(epoch)
        for step in range(self.steps):
            done = epoch * self.steps + step
            rate = plan.learning_rate(
                done, self.config.epochs * self.steps, self.config.learning_rate, self.config.warmup
            )
            for group in self.engine.optimizer.param_groups:
                group["lr"] = rate
            generator = torch.Generator().manual_seed((self.config.seed << 32) + done)
            maps = draw_transforms(size, self.config.augment, generator).numpy()
            batch = order[step * size : (step + 1) * size]
            micro_batches = zip(
                plan.share(batch, self.rank, self.world, self.micro_batch),
                plan.share(maps, self.rank, self.world, self.micro_batch),
                strict=True,
            )
            for rows, turns in micro_batches:
                films = transform(self._films(rows), torch.from_numpy(turns))
                targets = torch.from_numpy(self.targets[rows]).to(self.device)
                loss = self.loss(self.engine(self._network_input(films)), targets)
                self.engine.backward(loss)
                self.engine.step()
                losses[step] += loss.detach() * len(rows) / size
            # Reading the loss waits for the device, so it is shown now and then only.
            note = ""
            if step % 20 == 0:
                value = float(losses[step]) * self.world
                if not np.isfinite(value):
                    raise UserError(_NOT_FINITE.format(what="loss", epoch=epoch + 1))
                note = f"epoch {epoch + 1}, loss {value:.4f}, lr {rate:.1e}"
            if self.rank == 0:
                progress.add(size, note)
        torch.distributed.all_reduce(losses)
        mean = float(losses.mean())
        if not np.isfinite(mean):
            raise UserError(_NOT_FINITE.format(what="loss", epoch=epoch + 1))
        return mean

    def score(self, rows: np.ndarray) -> np.ndarray:
        """Raw logits float32 [rows, findings] of arbitrary rows, each scored exactly once by one process."""
        mine = np.array_split(rows, self.world)[self.rank]
        self.engine.eval()
        parts = [np.empty((0, len(self.dataset.findings)), np.float32)]
        with torch.inference_mode():
            for start in range(0, len(mine), SCORE_BATCH):
                films = self._network_input(self._films(mine[start : start + SCORE_BATCH]))
                parts.append(self.engine.module(films).float().cpu().numpy())
        gathered: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(gathered, np.concatenate(parts))
        return np.concatenate(gathered)

    def _films(self, rows: np.ndarray) -> Tensor:
        """Normalised films float32 [rows, 1, size, size] on the device."""
        pixels = torch.from_numpy(self.dataset.gather(rows)).to(self.device).unsqueeze(1).float()
        return (pixels - self.dataset.facts["pixel_mean"]) / self.dataset.facts["pixel_deviation"]

    def _network_input(self, films: Tensor) -> Tensor:
        return films.to(self.dtype).contiguous(memory_format=torch.channels_last)


def validation_scores(targets: np.ndarray, logits: np.ndarray) -> dict[str, float]:
    """Macro AP and AUROC over the findings that have both a positive and a negative film.

    Raises:
        UserError: no finding has both, so that no epoch could be called the best.
    """
    ap, auroc = [], []
    for labels, scores in zip(targets.T, logits.T, strict=True):
        known = ~np.isnan(labels)
        if len(set(labels[known])) == 2:
            ap.append(average_precision_score(labels[known], scores[known]))
            auroc.append(roc_auc_score(labels[known], scores[known]))
    if not ap:
        raise UserError("No finding has both positive and negative films in validation. Raise split.val.")
    return {"val_macro_ap": float(np.mean(ap)), "val_macro_auroc": float(np.mean(auroc))}


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the model's weights and buffers on the CPU, floating point ones in float32."""
    return {
        name: copy.deepcopy(tensor.detach())
        .cpu()
        .to(torch.float32 if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in model.state_dict().items()
    }


_NOT_FINITE = (
    "The {what} became infinite or no number in epoch {epoch}. Lower train.learning_rate or train.clip_norm, or set "
    "train.precision to float32."
)
