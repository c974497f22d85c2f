"""Shortcut probes on features and scores whose answers are known."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from robustness_inputs import FINDINGS
from sklearn.metrics import average_precision_score, roc_auc_score

from ral.config.robustness import ProbesConfig
from ral.evaluation.bootstrap import Resamples, draw
from ral.evaluation.resampled_metrics import Scored
from ral.models import Network
from ral.robustness.probes import (
    Stratified,
    attribute_values,
    audit_probes,
    file_types,
    out_of_fold,
    probe_rows,
    stratum_rows,
    within_auroc,
    within_rows,
)
from ral.robustness.subject import Subject

IMAGES = 400
CONFIG = ProbesConfig()


@pytest.fixture(scope="module")
def resamples() -> Resamples:
    """Two images a patient."""
    return draw(np.array([f"p{row // 2}" for row in range(IMAGES)]), 200, 0, 0.95, "percentile")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_what_the_features_hold_is_found_and_chance_is_not(
    resamples: Resamples, rng: np.random.Generator
) -> None:
    features = rng.normal(size=(IMAGES, 20))
    told = np.where(features[:, 3] + 0.3 * rng.normal(size=IMAGES) > 0, "JPEG", "PNG").astype(object)
    (row,) = probe_rows(features, "file_type", told, resamples, CONFIG, 0)
    assert (row.value, row.others, row.images) == ("JPEG", "PNG", (told == "JPEG").sum())
    assert row.low > 0.9
    chance = rng.permutation(np.repeat(["JPEG", "PNG"], IMAGES // 2)).astype(object)
    (row,) = probe_rows(features, "file_type", chance, resamples, CONFIG, 0)
    assert row.auroc == pytest.approx(0.5, abs=0.15)
    assert row.low < row.auroc < row.high


def test_a_patient_is_in_one_fold_only(resamples: Resamples, rng: np.random.Generator) -> None:
    """The features are the patient's own and say nothing about others, so that only a leak could tell."""
    patient = resamples.patient
    features = rng.normal(size=(IMAGES // 2, 400))[patient]
    target = rng.integers(0, 2, IMAGES // 2)[patient]
    area = roc_auc_score(target, out_of_fold(features, target, patient, CONFIG, 0))
    assert 0.35 < area < 0.65
    leaked = roc_auc_score(target, out_of_fold(features, target, np.arange(IMAGES), CONFIG, 0))
    assert leaked > 0.75


def test_each_of_several_values_is_told_from_the_others(
    resamples: Resamples, rng: np.random.Generator
) -> None:
    values = np.array(["A", "B", "C", "unknown"], object)[rng.integers(0, 4, IMAGES)]
    values[:6] = "rare"
    features = rng.normal(size=(IMAGES, 5)) + 3 * (values == "B")[:, None]
    rows = {row.value: row for row in probe_rows(features, "source", values, resamples, CONFIG, 0)}
    assert list(rows) == ["A", "B", "C", "rare"]
    assert rows["B"].low > 0.95
    assert rows["B"].share == pytest.approx((values == "B").sum() / (values != "unknown").sum(), abs=1e-6)
    assert rows["rare"].auroc is None
    assert rows["rare"].note == "fewer than 10 patients with or without it"


def test_the_auroc_within_values_counts_pairs_of_the_same_value(
    resamples: Resamples, rng: np.random.Generator
) -> None:
    values = np.array(["A", "B"], object)[rng.integers(0, 2, IMAGES)]
    labels = (rng.random(IMAGES) < np.where(values == "A", 0.5, 0.1)).astype(float)
    labels[:20] = np.nan
    logits = np.round(labels + rng.normal(size=IMAGES) + 2 * (values == "A"), 1)
    logits[np.isnan(labels)] = 0.0
    wins = pairs = 0.0
    for positive in np.flatnonzero(labels == 1):
        for negative in np.flatnonzero((labels == 0) & (values == values[positive])):
            wins += (logits[positive] > logits[negative]) + 0.5 * (logits[positive] == logits[negative])
            pairs += 1
    within = within_auroc(Scored(labels, logits, None, {}), values, resamples)
    assert within.values[0] == pytest.approx(wins / pairs, abs=1e-12)
    known = ~np.isnan(labels)
    assert within.values[0] < roc_auc_score(labels[known], logits[known]) - 0.05
    apart = Scored(np.where(values == "A", 1.0, 0.0), logits, None, {})
    assert within_auroc(apart, values, resamples) is None


def measured(subject: Subject, resamples: Resamples, scored: dict[str, Scored]) -> Stratified:
    return Stratified(subject.config, resamples, scored, list(scored))


@pytest.fixture
def shortcut(resamples: Resamples, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, Scored]]:
    """Mass is scored by the value of the attribute, with which it occurs; Effusion by what it looks like."""
    values = np.array(["A", "B"], object)[rng.integers(0, 2, IMAGES)]
    labels = (rng.random((2, IMAGES)) < np.where(values == "A", 0.5, 0.1)).astype(float)
    scores = np.stack([labels[0] + rng.normal(size=IMAGES), 3 * (values == "A") + rng.normal(size=IMAGES)])
    names = ("Effusion", "Mass")
    return values, {name: Scored(*pair, None, {}) for name, *pair in zip(names, labels, scores, strict=True)}


def test_a_finding_that_rests_on_a_shortcut_falls_within_its_values(
    subject: Subject, resamples: Resamples, shortcut: tuple
) -> None:
    values, scored = shortcut
    rows = {row.finding: row for row in within_rows(measured(subject, resamples, scored), "source", values)}
    assert rows["Mass"].auroc > 0.65
    assert rows["Mass"].within == pytest.approx(0.5, abs=0.1)
    assert rows["Mass"].high < 0
    assert rows["Mass"].p < 0.01
    assert rows["Effusion"].difference == pytest.approx(0, abs=0.05)
    assert rows["macro"].difference == pytest.approx(
        (rows["Mass"].difference + rows["Effusion"].difference) / 2, abs=2e-6
    )


def test_images_of_unknown_value_are_no_pairs(
    subject: Subject, resamples: Resamples, shortcut: tuple
) -> None:
    """Otherwise a shortcut would hide among images of which nobody knows whether they have the same value."""
    values, scored = shortcut
    hidden = values.copy()
    hidden[: IMAGES * 3 // 4] = "unknown"
    rows = {row.finding: row for row in within_rows(measured(subject, resamples, scored), "source", hidden)}
    last = slice(IMAGES * 3 // 4, None)
    mass = scored["Mass"]
    area = roc_auc_score(mass.labels[last], mass.logits[last])
    assert rows["Mass"].auroc == pytest.approx(area, abs=1e-6)
    assert rows["Mass"].within < area - 0.1
    assert rows["Mass"].high < 0
    none = Scored(np.where(hidden == "unknown", mass.labels, 0.0), mass.logits, None, {})
    assert not list(within_rows(measured(subject, resamples, {"Mass": none}), "source", hidden))


def test_a_probe_that_does_not_converge_has_a_note(resamples: Resamples, rng: np.random.Generator) -> None:
    # Nearly collinear features, and next to no penalty.
    features = rng.normal(size=(IMAGES, 3)) @ rng.normal(size=(3, 200)) + 0.03 * rng.normal(
        size=(IMAGES, 200)
    )
    told = np.where(rng.random(IMAGES) < 0.5, "JPEG", "PNG").astype(object)
    config = CONFIG.model_copy(update={"l2": 1e-12})
    (row,) = probe_rows(features, "file_type", told, resamples, config, 0)
    assert (row.auroc, row.low, row.note) == (None, None, "did not converge: raise robustness.probes.l2")


def test_strata_have_the_ap_of_their_images(subject: Subject, resamples: Resamples, shortcut: tuple) -> None:
    values, scored = shortcut
    rows = list(stratum_rows(measured(subject, resamples, scored), "source", values))
    assert [(row.value, row.finding) for row in rows] == [
        (value, name) for value in ("A", "B") for name in ("Effusion", "Mass", "macro")
    ]
    mass = scored["Mass"]
    for row in rows:
        inside = values == row.value
        if row.finding == "Mass":
            assert row.ap == pytest.approx(average_precision_score(mass.labels[inside], mass.logits[inside]))
            assert row.others == pytest.approx(
                average_precision_score(mass.labels[~inside], mass.logits[~inside])
            )
            assert row.positives == (mass.labels[inside] == 1).sum()


def test_file_types_come_from_the_names_of_the_files() -> None:
    studies = pd.DataFrame(
        {
            "path": ["images_001.tar.gz", "a/b.jpg", "c.JPEG", "d.dcm", "e"],
            "member": ["images/1.png", None, "", None, None],
        }
    )
    assert file_types(studies) == ["PNG", "JPEG", "JPEG", "DCM", ""]


def with_studies(subject: Subject, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Subject:
    """The subject with another table of its data set."""
    import pyarrow as pa

    table = pa.Table.from_pandas(change(subject.dataset.studies.copy()), preserve_index=False)
    return replace(subject, dataset=replace(subject.dataset, table=table))


def test_attributes_without_two_values_are_left_out_with_the_reason(subject: Subject) -> None:
    def add(studies: pd.DataFrame) -> pd.DataFrame:
        number = np.arange(len(studies))
        return studies.assign(
            view=np.where(number % 2, "PA", "AP"),
            sex="F",
            age_years=np.where(number % 3, 20.0, 70.0),
            path=[f"{name}.{'png' if row % 2 else 'jpg'}" for row, name in enumerate(studies["image_id"])],
            member=None,
        )

    changed = with_studies(subject, add)
    values, left_out = attribute_values(changed, ProbesConfig().attributes)
    assert left_out == {"source": "not in the data", "sex": "one value: F"}
    assert list(values) == ["file_type", "view", "age"]
    by_id = changed.dataset.studies.set_index("image_id")
    for place, image in enumerate(changed.test["image_id"]):
        assert values["view"][place] == by_id["view"][image]
        assert values["file_type"][place] == ("PNG" if by_id["view"][image] == "PA" else "JPEG")
    assert set(values["age"]) == {"18–39", "60–79"}
    assert attribute_values(subject, ["file_type"]) == ({}, {"file_type": "not in the data"})


def test_a_network_without_a_feature_map_still_has_strata(subject: Subject) -> None:
    def add(studies: pd.DataFrame) -> pd.DataFrame:
        return studies.assign(view=np.where(np.arange(len(studies)) % 3, "PA", "AP"))

    network = Network(subject.network, None, 1, None).eval()
    changed = replace(with_studies(subject, add), network=network)
    logits = changed.score(None)
    result = audit_probes(changed, logits, ProbesConfig(attributes=["view"]), 0)
    assert "no feature map" in result.not_available
    assert not result.probes
    assert {row.finding for row in result.strata} <= {*FINDINGS, "macro"}
    assert {row.finding for row in result.within} == {"Effusion", "Mass", "macro"}
    assert all(row.p_holm >= row.p for row in result.within)
    assert audit_probes(subject, logits, ProbesConfig(), 0).left_out.keys() == set(ProbesConfig().attributes)
