"""The membership attack finds a memorised image in the earlier model and nothing in a model that never saw it."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from ral.data.privacy import NO_PSEUDONYMS, Pseudonymizer
from ral.evaluation.results import Interval
from ral.release.forget import Audit, Group, compare, image_losses, released_split

SETTINGS = {"replicates": 400, "seed": 0, "confidence": 0.95}


def test_losses_are_the_cross_entropy_of_known_labels() -> None:
    labels = np.array([[1.0, 0.0, np.nan], [np.nan, np.nan, np.nan], [0.0, 1.0, 1.0]])
    probabilities = np.array([[0.8, 0.4, 0.1], [0.5, 0.5, 0.5], [0.0, np.nan, 0.25]])
    losses = image_losses(labels, probabilities)
    assert losses[0] == pytest.approx(-(np.log(0.8) + np.log(0.6)) / 2)
    assert np.isnan(losses[1])
    assert losses[2] == pytest.approx((1e-6 - np.log(0.25)) / 2, rel=1e-5)


def test_patients_of_a_release_are_found_by_id_or_pseudonym() -> None:
    salt = Pseudonymizer(b"0123456789abcdef")
    names = pd.Series(["a", "b", "c", "d"])
    split = pd.Series(["train", "test", "val"], index=["a", "b", "c"])
    for pseudonymizer, released in (
        (NO_PSEUDONYMS, split),
        (salt, split),  # the ids were those of the table, and are pseudonyms today
        (salt, split.set_axis(salt.ids(names[:3]).array)),
    ):
        found = released_split(pseudonymizer.ids(names), released, pseudonymizer)
        assert found[:3].tolist() == ["train", "test", "val"]
        assert found.isna().tolist() == [False, False, False, True]
    assert released_split(names, split.set_axis(salt.ids(names[:3]).array), NO_PSEUDONYMS).isna().all()


def groups(gain: float, patients: int = 40) -> tuple[Group, Group]:
    """Two images a patient with random losses, those of the forgotten lower by `gain` in the earlier model."""
    random = np.random.default_rng(3)

    def group(name: str, number: int, less: float) -> Group:
        ids = np.repeat([f"{name}{index}" for index in range(number)], 2)
        base = random.exponential(size=len(ids))
        noise = random.normal(scale=0.05, size=(2, len(ids)))
        return Group(ids, base + noise[0] - less, base + noise[1])

    return group("f", patients, gain), group("t", 3 * patients, 0.0)


def test_numbers_are_those_of_the_groups() -> None:
    forgotten, others = groups(0.4)
    result = compare(forgotten, others, **SETTINGS)
    assert result.loss_gap.value == pytest.approx(np.mean(forgotten.after - forgotten.before))
    assert result.loss_before.value == pytest.approx(forgotten.before.mean())
    pairs = others.before[:, None] - forgotten.before[None, :]
    auroc = np.mean(pairs > 0) + np.mean(pairs == 0) / 2
    assert result.attack_before.value == pytest.approx(auroc)
    assert result == compare(forgotten, others, **SETTINGS)


def test_intervals_cover_no_memory_and_exclude_a_memory() -> None:
    nothing = compare(*groups(0.0), **SETTINGS)
    for interval in (nothing.attack_before, nothing.attack_after, nothing.attack_difference):
        assert interval.low < 0.5 < interval.high
    assert nothing.loss_gap.low < 0 < nothing.loss_gap.high
    memory = compare(*groups(0.4), **SETTINGS)
    assert memory.attack_difference.low > 0.9  # images that are easy for both models cancel
    assert memory.attack_before.low > 0.5
    assert memory.attack_before.value < memory.attack_difference.value
    assert memory.loss_gap.low > 0.3
    assert memory.attack_after.low < 0.5 < memory.attack_after.high


def test_patients_are_resampled_and_not_images() -> None:
    forgotten, others = groups(0.0, patients=10)
    copies = Group(*(np.repeat(each, 50) for each in (forgotten.patients, forgotten.before, forgotten.after)))
    once, often = (compare(group, others, **SETTINGS).loss_before for group in (forgotten, copies))
    assert often.high - often.low == pytest.approx(once.high - once.low, rel=0.25)


def test_few_patients_have_no_interval_and_no_verdict() -> None:
    forgotten, others = groups(0.4, patients=1)
    result = compare(forgotten, others, **SETTINGS)
    assert result.loss_gap.value is not None
    assert (result.attack_after.low, result.attack_after.high) == (None, None)
    assert "Too few patients" in result.sentence()


def trained(images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """A small network that has seen some images until it knows them by heart."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 3))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(network(images), labels).backward()
        optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def planted() -> tuple[Group, Group]:
    """Noise with random labels, which can only be memorised: 20 planted images, and as many others as a test set."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(140, 8, 8, generator=generator)
    labels = (torch.rand(140, 3, generator=generator) < 0.3).float()
    kept, leaving, test = slice(0, 60), slice(60, 80), slice(80, 140)
    with torch.random.fork_rng():
        before = trained(
            torch.cat([images[kept], images[leaving]]), torch.cat([labels[kept], labels[leaving]])
        )
        after = trained(images[kept], labels[kept])

    def group(rows: slice, name: str) -> Group:
        with torch.no_grad():
            losses = [
                image_losses(
                    labels[rows].double().numpy(), torch.sigmoid(network(images[rows])).double().numpy()
                )
                for network in (before, after)
            ]
        return Group(np.array([f"{name}{index}" for index in range(len(losses[0]))]), *losses)

    return group(leaving, "leaving"), group(test, "test")


def test_planted_images_are_found(planted: tuple[Group, Group]) -> None:
    result = compare(*planted, **SETTINGS)
    assert result.attack_before.low > 0.8
    assert result.attack_difference.low > 0.6
    assert result.loss_gap.low > 0.1
    assert result.attack_after.low < 0.5 < result.attack_after.high
    assert "does not mark" in result.sentence()


def test_a_single_planted_image_is_found(planted: tuple[Group, Group]) -> None:
    leaving, test = planted
    for index in range(5):
        one = Group(*(each[index : index + 1] for each in (leaving.patients, leaving.before, leaving.after)))
        result = compare(one, test, **SETTINGS)
        assert result.attack_before.value > 0.95
        assert result.attack_before.value > result.attack_after.value


def test_a_model_that_was_not_retrained_is_found_out(planted: tuple[Group, Group]) -> None:
    leaving, test = planted
    same = [Group(group.patients, group.before, group.before) for group in (leaving, test)]
    result = compare(*same, **SETTINGS)
    assert result.attack_after.low > 0.8
    assert result.loss_gap.value == 0
    assert "easier images, or the model was trained on copies" in " ".join(result.sentence().split())


def test_lines_have_every_number() -> None:
    some = Interval(0.5, 0.4, 0.6)
    lines = Audit(some, some, some, some, some, some).lines()
    assert len(lines) == 6
    assert all("0.500 (0.400–0.600)" in line for line in lines)
