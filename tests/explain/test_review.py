"""Suspicious labels: planted errors come first, and no classifier sees the patient that it judges."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from ral.config.data import PhantomConfig
from ral.config.explain import ReviewConfig
from ral.data.dataset import open_dataset
from ral.explain.contents import SuspiciousLabel
from ral.explain.review import most_suspicious, out_of_fold, patient_folds, review, suspicion, to_table
from ral.models.load import load_network
from ral.phantom.population import FINDINGS, draw_population
from ral.phantom.signs import draw_image


def planted(images: int = 1500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels of a finding (6 %), and which labels are wrong: 10 % of the positives and as many negatives."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(images, 6))
    truth = (np.arange(images) < 0.06 * images).astype(float)
    features[truth == 1, :2] += 3
    wrong = np.zeros(images, bool)
    for value in (0, 1):
        wrong[rng.choice(np.flatnonzero(truth == value), round(0.006 * images), replace=False)] = True
    return features, np.where(wrong, 1 - truth, truth), wrong


def test_planted_errors_are_the_most_suspicious() -> None:
    features, target, wrong = planted()
    labels = suspicion(features, target, patient_folds(np.arange(1500) // 2, 5, 0), 20)
    assert roc_auc_score(wrong, labels.confidence) > 0.95
    for value in (0, 1):
        own = target == value
        assert roc_auc_score(wrong[own], labels.confidence[own]) > 0.95
    assert labels.predicted_otherwise[wrong].mean() > 0.7
    assert labels.predicted_otherwise[~wrong].mean() < 0.05


@pytest.fixture(scope="module")
def phantom_bank() -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Features, patients and labels of 1200 phantom images. The features are 12 × 12 gray values, which show the
    findings below without a trained network.
    """
    config = PhantomConfig(images=1200, size=48, floor=0.009, seed=1)
    population = draw_population(config)
    pixels = np.stack([draw_image(image, config.size, config.seed) for image in population]).astype(float)
    features = pixels.reshape(-1, 12, 4, 12, 4).mean(axis=(2, 4)).reshape(len(pixels), -1)
    labels = {name: [float(name in image.findings) for image in population] for name in FINDINGS}
    return features, np.array([image.patient for image in population]), pd.DataFrame(labels)


@pytest.mark.parametrize(
    "finding",
    ["Atelectasis", "Cardiomegaly", "Edema", "Effusion", "Emphysema", "Infiltration", "Pneumothorax"],
)
def test_swapped_labels_of_the_phantom_come_first(phantom_bank, finding: str) -> None:
    """5 % of the labels of a finding are wrong. Findings of 2 % are among these: most of their positives are wrong
    then.
    """
    features, patients, labels = phantom_bank
    wrong = np.random.default_rng(0).random(len(labels)) < 0.05
    target = np.where(wrong, 1 - labels[finding], labels[finding])
    sd = features.std(axis=0)
    standardised = (features - features.mean(axis=0)) / np.where(sd > 0, sd, 1)
    found = suspicion(standardised, target, patient_folds(patients, 5, 0), 20)
    assert roc_auc_score(wrong, found.confidence) >= 0.9
    studies = pd.DataFrame({"image_id": np.arange(len(labels)), "patient_id": patients, finding: target})
    studies["image_id"] = studies["image_id"].astype(str)
    listed = most_suspicious(studies, [finding], features, ReviewConfig(labels=20))
    assert {label.label for label in listed} == {0, 1}
    assert np.mean([wrong[int(label.image_id)] for label in listed]) >= 0.4  # by chance 0.05
    for value in (0, 1):  # the order is by confidence, for each value
        own = [int(label.image_id) for label in listed if label.label == value]
        assert (np.diff(found.confidence[own]) <= 0).all()


def test_an_outlier_among_the_positives_is_listed() -> None:
    features, target, _ = planted()
    positives = np.flatnonzero(target == 1)
    features[positives[7]] = [30, 30, -30, 0, 0, 0]
    labels = suspicion(features, target, patient_folds(np.arange(1500), 5, 0), 20)
    assert labels.is_outlier[positives[7]]
    assert np.isnan(labels.outlier_factor[target == 0]).all()


def test_folds_split_by_patient_and_the_judge_has_not_seen_the_image() -> None:
    patients = np.array(["b", "a", "b", "c", "a", "d"])
    folds = patient_folds(patients, 2, 0)
    assert folds[0] == folds[2]
    assert folds[1] == folds[4]
    assert sorted(np.unique(folds)) == [0, 1]
    features, target, _ = planted()
    folds = patient_folds(np.arange(1500), 5, 1)
    before = out_of_fold(features, target, folds)
    changed = target.copy()
    changed[folds == 2] = 1 - changed[folds == 2]
    assert (out_of_fold(features, changed, folds)[folds == 2] == before[folds == 2]).all()


def test_what_cannot_be_estimated_is_not_suspicious() -> None:
    features, target, _ = planted()
    folds = np.arange(1500) % 3
    unknown = np.where(np.arange(1500) % 7 == 0, np.nan, target)
    labels = suspicion(features, unknown, folds, 20)
    assert not labels.predicted_otherwise[np.isnan(unknown)].any()
    assert np.isfinite(labels.probability).all()
    for nothing in (np.zeros(1500), np.full(1500, np.nan)):
        labels = suspicion(features, nothing, folds, 20)
        assert not labels.predicted_otherwise.any()
        assert not labels.is_outlier.any()


def test_the_list_names_images_and_reasons_and_is_no_longer_than_asked() -> None:
    features, target, wrong = planted()
    studies = pd.DataFrame(
        {
            "image_id": [f"{i}.png" for i in range(1500)],
            "patient_id": np.arange(1500) // 2,
            "Mass": target,
            "Hernia": np.zeros(1500),
        }
    )
    found = most_suspicious(studies, ("Mass", "Hernia"), features, ReviewConfig(labels=12))
    assert len(found) == 12
    assert all("predicted otherwise" in label.reasons for label in found)
    assert np.mean([wrong[int(label.image_id.split(".")[0])] for label in found]) > 0.8
    table = to_table(found)
    assert list(table.columns) == list(SuspiciousLabel.model_fields)
    assert table["reasons"].str.startswith("predicted otherwise").all()
    assert (most_suspicious(studies, ("Mass", "Hernia"), features, ReviewConfig(labels=12))) == found


def test_only_training_images_are_listed(prepared: Path, make_model) -> None:
    network, info = load_network(make_model())
    dataset = open_dataset(prepared)
    found = review(network, info, dataset, ReviewConfig(folds=2))
    train = set(dataset.studies.loc[dataset.studies["split"] == "train", "image_id"])
    assert found
    assert {label.image_id for label in found} <= train
    for label in found:
        row = dataset.studies.set_index("image_id").loc[label.image_id]
        assert row[label.finding] == label.label


def test_an_empty_list_has_columns() -> None:
    assert list(to_table(()).columns) == list(SuspiciousLabel.model_fields)
    with pytest.raises(ValueError, match="reasons"):
        SuspiciousLabel(
            finding="a", image_id="b", label=1, reasons=("bad",), probability=None, outlier_factor=None
        )
