"""The loss of a micro-batch, for losses in which images act on each other."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from trainings import params

from ral.config.losses import LossConfig, MFMOptions
from ral.data.dataset import Dataset, open_dataset
from ral.inference.prefetch import MicroBatch
from ral.losses import build_loss
from ral.losses.base import ClassCounts
from ral.training.batch_loss import BatchLoss
from ral.training.batch_norm import unchanged_buffers

LOSSES = ["two_way", "dice", "anyloss", "rlc"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(prepared: Path) -> Dataset:
    return open_dataset(prepared)


def parts(dataset: Dataset, sizes: list[int]) -> list[MicroBatch]:
    """Micro-batches of one global batch with these numbers of images; some labels are unknown."""
    targets = torch.tensor(dataset.targets()[: sum(sizes)])
    targets[1, 2] = torch.nan
    nothing = torch.empty(0)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [
        MicroBatch(0, nothing, targets[start : start + size], nothing, 1.0, start, sum(sizes), 0)
        for start, size in zip(starts, sizes, strict=True)
    ]


def logits_of(dataset: Dataset, images: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    drawn = torch.randn(images, len(dataset.findings), generator=torch.Generator().manual_seed(0))
    return drawn.to(dtype).requires_grad_()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_add_up_to_the_loss_of_the_whole_batch(dataset: Dataset, name: str, dtype: torch.dtype) -> None:
    sizes = [5, 6, 5]
    batches = parts(dataset, sizes)
    logits = logits_of(dataset, 16, dtype)
    counts = ClassCounts.of(dataset.class_counts["train"], dataset.findings)
    one = build_loss(name, {}, counts)
    one.set_epoch(1)
    plain = one(logits, torch.cat([batch.targets for batch in batches]))
    (wanted,) = torch.autograd.grad(plain, logits)
    loss = BatchLoss(params(loss=name), dataset, CPU)
    loss.set_epoch(1)
    chunks = logits.split(sizes)
    whole = loss.over_batch(chunks, batches)
    total = sum(loss.contribution(chunk, batch, whole) for chunk, batch in zip(chunks, batches, strict=True))
    torch.testing.assert_close(total, plain)
    (found,) = torch.autograd.grad(total, logits)
    torch.testing.assert_close(found, wanted)


def test_a_micro_batch_that_is_the_whole_batch_needs_no_first_pass(dataset: Dataset) -> None:
    (batch,) = parts(dataset, [16])
    logits = logits_of(dataset, 16)
    loss = BatchLoss(params(loss="two_way"), dataset, CPU)
    torch.testing.assert_close(
        loss.contribution(logits, batch), build_loss("two_way")(logits, batch.targets), rtol=0, atol=0
    )


def test_running_sums_are_saved_and_those_of_a_batch_count_once(dataset: Dataset) -> None:
    batches = parts(dataset, [8, 8])
    logits = logits_of(dataset, 16)
    loss = BatchLoss(params(loss="anyloss"), dataset, CPU)
    loss.over_batch(logits.split(8), batches)
    state = loss.state_dict()
    assert state["batches"] == 1
    assert state["running"][0, 0].tolist() == [
        batches[0].targets.nan_to_num().sum(0)[c] + batches[1].targets.nan_to_num().sum(0)[c]
        for c in range(len(dataset.findings))
    ]
    loss.over_batch(logits.split(8), batches)
    assert state["batches"] == 1  # a copy
    other = BatchLoss(params(loss="anyloss"), dataset, CPU)
    other.load_state_dict(state)
    assert torch.equal(other.state_dict()["running"], state["running"])


@pytest.mark.parametrize("name", ["ral", "mfm", "two_way"])
def test_other_losses_add_nothing_to_a_checkpoint(dataset: Dataset, name: str) -> None:
    assert BatchLoss(params(loss=name), dataset, CPU).state_dict() == {}


def test_labels_that_occur_together_are_those_of_the_training_images(dataset: Dataset) -> None:
    config = LossConfig(name="mfm", mfm=MFMOptions(cooccurrence=True))
    loss = BatchLoss(params().model_copy(update={"loss": config}), dataset, CPU)
    train = dataset.studies[dataset.studies["split"] == "train"][list(dataset.findings)]
    first, second = dataset.findings[:2]
    both = ((train[first] == 1) & (train[second] == 1)).sum()
    assert both > 0
    others = sum(
        ((train[name] == 1) & (train[second] == 1)).sum() for name in dataset.findings if name != second
    )
    assert loss.loss.shares[0, 1].item() == pytest.approx(both / others)
    assert not loss.loss.shares.diagonal().any()


@pytest.mark.parametrize("name", LOSSES)
def test_it_does_not_wait_for_the_device(dataset: Dataset, name: str) -> None:
    class Recorder(TorchDispatchMode):
        names: set[str] = set()  # noqa: RUF012

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.names.add(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    loss = BatchLoss(params(loss=name), dataset, CPU)
    (batch,) = parts(dataset, [16])
    with Recorder() as recorder:
        loss.contribution(logits_of(dataset, 16), batch)
    assert not {"_local_scalar_dense", "lift_fresh", "nonzero"} & recorder.names


def test_the_first_pass_leaves_running_statistics() -> None:
    model = nn.BatchNorm2d(3)
    with torch.no_grad(), unchanged_buffers(model):
        model(torch.randn(4, 3, 5, 5))
        assert model.num_batches_tracked == 1
    assert model.num_batches_tracked == 0
    assert torch.equal(model.running_mean, torch.zeros(3))
