"""NIH ChestX-ray14 (Wang et al., CVPR 2017) in its original layout: Data_Entry_2017*.csv and two official lists."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from ral.data.sources.base import DelimitedLabels, Layout, Source
from ral.data.sources.text import find_table, read_chunks, read_list
from ral.errors import UserError
from ral.labels import NIH_FINDINGS, NO_FINDING

TABLES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
TRAIN_LIST, TEST_LIST = "train_val_list.txt", "test_list.txt"

# The last two names in the header contain commas (`OriginalImage[Width,Height]`), so header and rows both have eleven
# fields. The columns used precede them.
COLUMNS = (
    "Image Index",
    "Finding Labels",
    "Follow-up #",
    "Patient ID",
    "Patient Age",
    "Patient Gender",
    "View Position",
)


def split_labels(text: str) -> list[str]:
    """Split a text such as `Cardiomegaly|Effusion`."""
    return text.split("|")


class Reader(Source):
    """A folder with the table, the two lists, and the images in images_*.tar.gz or images/."""

    layout = Layout(
        image="Image Index",
        patient="Patient ID",
        follow_up="Follow-up #",
        age="Patient Age",
        sex="Patient Gender",
        view="View Position",
        # All NIH images are frontal; merged tables may add laterals.
        views={view: view for view in ("PA", "AP", "LATERAL")},
        labels=DelimitedLabels(
            "Finding Labels", split_labels, {**{name: (name,) for name in NIH_FINDINGS}, NO_FINDING: ()}
        ),
        image_pattern=r"^[^/\\]+\.(?:png|jpg|jpeg)\Z",
        image_check="image id is a file name",
        age_pattern=r"^[0-9]+(?:\.0*)?\Z",
        patient_pattern=r"^(?:0|[1-9][0-9]*)\Z",
        patient_check="patient id is a plain number",
        patient_remedy="Write it as a plain number without zeros in front: one person under two spellings could "
        "both train and test.",
    )

    def tables(self) -> list[Path]:
        return [find_table(self.root, TABLES)]

    def read(self) -> pd.DataFrame:
        return pd.concat(self.iter_chunks(), ignore_index=True)

    def iter_chunks(self) -> Iterator[pd.DataFrame]:
        yield from read_chunks(self.tables()[0], COLUMNS)

    def official(self, studies: pd.DataFrame) -> pd.Series:
        train, test = read_lists(self.root)
        ids = studies["image_id"]
        split = pd.Series(None, index=studies.index, dtype="str")
        split[ids.isin(train)] = "train"
        split[ids.isin(test)] = "test"
        return split


def read_lists(root: Path) -> tuple[set[str], set[str]]:
    """Image ids of the two official lists (training and validation; test).

    Raises:
        UserError: a list is missing or empty, or an image is on both.
    """
    lists = []
    for name in (TRAIN_LIST, TEST_LIST):
        path = root / name
        if not path.is_file():
            raise UserError(f"{path} is missing. Put the list of NIH there, or set split.method to hash.")
        ids = set(read_list(path))
        if not ids:
            raise UserError(f"{path} is empty. Download it again, or set split.method to hash.")
        lists.append(ids)
    both = lists[0] & lists[1]
    if both:
        raise UserError(f"{root}: {min(both)} is on both {TRAIN_LIST} and {TEST_LIST}. Keep it on one.")
    return lists[0], lists[1]
