"""Every second-phase method: same seed, same head; other splits are never read; units of the features do not matter."""

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from ral.errors import UserError
from ral.training.second_phase.bank import Bank
from ral.training.second_phase.registry import METHODS, build_second_phase

RANDOM = ("undersample", "oversample", "two_phase", "smote", "storm", "crt")


def bank(images: int = 300, seed: int = 0) -> Bank:
    """Two images per patient, three findings (40 %, 15 %, 5 %), some labels unknown, a fourth finding in no image."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(images, 5))
    margin = features[:, :3] - np.quantile(features[:, :3], [0.6, 0.85, 0.95], axis=0).diagonal()
    targets = np.column_stack([margin + rng.normal(0, 0.4, margin.shape) > 0, np.zeros(images)]).astype(float)
    uncertain = rng.random(targets.shape) < 0.2
    targets[rng.random(targets.shape) < 0.1] = np.nan
    patients = np.array([f"p{index // 2}" for index in range(images)])
    split = np.array(["train", "train", "val", "test"])[np.arange(images) // 2 % 4]
    return Bank(features, targets, patients, split, uncertain)


@pytest.mark.parametrize("name", METHODS)
def test_seed_and_training_images_alone_decide(name: str) -> None:
    phase, full = build_second_phase(name), bank()
    head = phase.fit(full, seed=3)
    assert head.weight.shape == (4, 5)
    assert np.isfinite(head.weight).all()
    assert np.isfinite(head.bias).all()
    assert (head.weight[3] == 0).all()
    others = full.split != "train"
    poisoned = full._replace(
        features=np.where(others[:, None], np.nan, full.features),
        targets=np.where(others[:, None], 1 - full.targets, full.targets),
    )
    again = phase.fit(poisoned, seed=3)
    assert (again.weight == head.weight).all()
    assert (again.bias == head.bias).all()
    different = phase.fit(full, seed=4)
    assert (different.weight != head.weight).any() == (name in RANDOM)


@pytest.mark.parametrize("name", METHODS)
def test_shift_and_scale_of_the_features_do_not_change_the_logits(name: str) -> None:
    phase, full = build_second_phase(name), bank()
    scale, shift = np.array([1e-3, 1.0, 10.0, 1e3, 0.5]), np.array([0.0, 5.0, -20.0, 1e3, 1.0])
    moved = full._replace(features=full.features * scale + shift)
    np.testing.assert_allclose(
        phase.fit(moved, 0).logits(moved.features),
        phase.fit(full, 0).logits(full.features),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_head_ranks_test_images_of_the_findings_it_learned(name: str) -> None:
    full = bank(1200)
    if name == "presto":
        full = full._replace(uncertain=np.zeros_like(full.uncertain))
    logits = build_second_phase(name).fit(full, 0).logits(full.features)
    for finding in range(3):
        test = (full.split == "test") & ~np.isnan(full.targets[:, finding])
        positive = full.targets[test, finding] == 1
        z = logits[test, finding]
        assert (z[positive][:, None] > z[~positive]).mean() > 0.8


def test_a_patient_in_two_splits_is_refused() -> None:
    full = bank()
    with pytest.raises(ValueError, match="1 patients have images in train and in another split"):
        build_second_phase("crt").fit(
            full._replace(split=np.where(np.arange(300) == 1, "test", full.split)), 0
        )
    with pytest.raises(ValueError, match="no image in the split train"):
        build_second_phase("crt").fit(full._replace(split=np.full(300, "test")), 0)


def test_names_and_options_are_checked() -> None:
    with pytest.raises(ValueError, match="Did you mean `smote`"):
        build_second_phase("smoot")
    with pytest.raises(ValidationError, match="neighbors"):
        build_second_phase("smote", {"neighbors": 3})
    assert build_second_phase("smote", {"neighbours": 3}).options.model_dump()["neighbours"] == 3
    phase = build_second_phase("crt")
    with pytest.raises(AttributeError):
        phase.name = "smote"
    assert replace(phase, name="undersample").name == "undersample"


def test_presto_needs_uncertain_labels() -> None:
    with pytest.raises(UserError, match="which labels are uncertain"):
        build_second_phase("presto").fit(bank()._replace(uncertain=None), 0)


def test_a_constant_feature_has_no_weight() -> None:
    full = bank()
    flat = full.features.copy()
    flat[:, 2] = 0.1
    head = build_second_phase("crt").fit(full._replace(features=flat), 0)
    assert (head.weight[:, 2] == 0).all()
    assert np.isfinite(head.bias).all()
