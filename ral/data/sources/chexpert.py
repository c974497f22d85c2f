"""CheXpert v1.0, small and full (Irvin et al., AAAI 2019) in its original layout: train.csv, valid.csv and JPEG images.

`data.root` is the folder CheXpert-v1.0-small or CheXpert-v1.0 itself; the paths in the tables start with its name.
"""

from pathlib import Path

import pandas as pd

from ral.data.sources.base import ColumnLabels, Layout, Source
from ral.data.sources.text import find_table, read_text
from ral.labels import LABEL_SETS

# Table -> official split; the expert-read images are the test set, and validation is taken from training.
TABLES = {"train.csv": "train", "valid.csv": "test"}
COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", "No Finding")
PATH = r"^[^/]+/(?P<path>(?:train|valid|test)/(?P<patient>patient\d+)/(?P<study>study\d+)/(?P<image>view\w+)\.\w+)$"


class Reader(Source):
    """Patient, study and image are parts of the path; -1 is uncertain, an empty label is unmentioned."""

    layout = Layout(
        image="image",
        patient="patient",
        study="study",
        path="file",
        split="official",
        view="view",
        views={
            "AP": "AP",
            "PA": "PA",
            "Frontal": "FRONTAL",
            "Lateral": "LATERAL",
            "LL": "OTHER",
            "RL": "OTHER",
        },
        sex="Sex",
        sexes={"Male": "M", "Female": "F", "Unknown": None},
        age="Age",
        labels=ColumnLabels(LABEL_SETS["chexpert"]["chexpert"], no_finding="No Finding"),
        patient_pattern=r"^patient[0-9]+\Z",
        patient_remedy="The path must read <data set>/train/patient00001/study1/view1_frontal.jpg.",
        contradiction="warning",
    )

    def tables(self) -> list[Path]:
        find_table(self.root, ("train.csv",))
        return [self.root / name for name in TABLES if (self.root / name).is_file()]

    def read(self) -> pd.DataFrame:
        columns = (*COLUMNS, *self.label_set.values())
        return pd.concat(
            [_derive(read_text(path, columns)).assign(official=TABLES[path.name]) for path in self.tables()],
            ignore_index=True,
        )


def _derive(table: pd.DataFrame) -> pd.DataFrame:
    """Derive ids and view from the path and the two view columns; an unexpected path leaves the patient empty."""
    parts = table["Path"].str.extract(PATH)
    study = parts["patient"] + "_" + parts["study"]
    frontal = table["AP/PA"].where(table["AP/PA"] != "", "Frontal")
    return table.assign(
        image=(study + "_" + parts["image"]).fillna(table["Path"]),
        patient=parts["patient"].fillna(""),
        study=study.fillna(""),
        file=parts["path"].fillna(""),
        view=frontal.where(table["Frontal/Lateral"] != "Lateral", "Lateral"),
    )
