"""Studies and logits shared by the tests of the evaluation."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from threadpoolctl import threadpool_limits

# Head, medium and tail finding in training, and one that does not occur in test.
PREVALENCE = {"Effusion": 0.3, "Mass": 0.05, "Hernia": 0.005, "Edema": 0.08}
FINDINGS = list(PREVALENCE)

Tables = tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread, as in the step; more threads slow down small problems."""
    with threadpool_limits(1):
        yield


def logits_of(studies: pd.DataFrame, split: str) -> pd.DataFrame:
    """Logits that are informative about the labels, with shuffled rows."""
    rows = studies[studies["split"] == split].sample(frac=1, random_state=1)
    generator = np.random.default_rng(len(rows))
    logits = pd.DataFrame({"image_id": rows["image_id"].to_numpy()})
    for name in FINDINGS:
        noise = generator.normal(size=len(rows))
        logits[name] = (noise + 1.5 * rows[name].fillna(0).to_numpy()).astype(np.float32)
    return logits


@pytest.fixture
def tables() -> Tables:
    """Studies of 1800 images, three per patient, and logits for val and test."""
    generator = np.random.default_rng(0)
    rows = 1800
    number = np.arange(rows)
    split = np.repeat(["train", "val", "test"], rows // 3)
    studies = pd.DataFrame(
        {
            "image_id": [f"image{n:04d}" for n in number],
            "patient_id": [f"p{n // 3:03d}" for n in number],
            "split": split,
        }
    )
    for name, prevalence in PREVALENCE.items():
        label = np.zeros(rows)
        for part, scale in (("train", 1.0), ("val", 2.0), ("test", 4.0 if name == "Hernia" else 2.0)):
            inside = np.flatnonzero(split == part)
            label[generator.choice(inside, int(prevalence * scale * len(inside)), replace=False)] = 1
        studies[name] = label
    studies.loc[studies["split"] == "test", "Edema"] = 0.0
    studies.loc[number % 7 == 0, "Mass"] = np.nan
    return studies, logits_of(studies, "val"), logits_of(studies, "test")
