"""Sources, label vocabularies, spelling, and the head / medium / tail tier of a finding by its training prevalence."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from ral.suggest import did_you_mean

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Spelling and order of torchxrayvision's `default_pathologies` (its first fourteen are NIH ChestX-ray14's).
NIH_FINDINGS = (
    "Atelectasis",
    "Consolidation",
    "Infiltration",
    "Pneumothorax",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Effusion",
    "Pneumonia",
    "Pleural_Thickening",
    "Cardiomegaly",
    "Nodule",
    "Mass",
    "Hernia",
)

# Not a finding: it marks an image without findings, so it never occurs beside one.
NO_FINDING = "No Finding"
# May occur beside "No Finding": the CheXpert labeller and its descendants do not count devices as disease.
SUPPORT_DEVICES = "Support Devices"

# Prefix of the image id of every phantom image, so that derived tables keep the mark.
PHANTOM_PREFIX = "phantom"

# Columns of the pipeline's tables and groups of findings in its results; not allowed as names of findings.
RESERVED_NAMES = frozenset(
    (
        "image_id", "patient_id", "study_id", "view", "sex", "age_years", "path", "member", "split", "official",
        "stored",
        "left_out", "reason", "row", "monochrome1", "group", "finding", "level", "name", "data", "macro", "micro",
        "head",
        "medium", "tail", "source",
    )
)  # fmt: skip

# First characters of a cell that a spreadsheet treats as a formula; full-width ones in some languages.
FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")

# Columns that the pipeline adds to the raw rows of a table; not allowed as columns of a source.
ADDED_COLUMNS = frozenset(
    (
        "row", "image_bytes", "image_repeated", "file_repeated", "same_image", "patient_lookalike", "patient_known",
        "label_problem", "contradiction", "id_problem", "age_as_number", "age_step", "sexes_of_patient",
        "row index in the table",
    )
)  # fmt: skip

# Names in data sets that torchxrayvision or another data set spells differently.
ALIASES = {
    "Normal": NO_FINDING,
    "No finding": NO_FINDING,
    "normal": NO_FINDING,
    "Pleural Effusion": "Effusion",
    "Pleural effusion": "Effusion",
    "pleural effusion": "Effusion",
    "Pleural Thickening": "Pleural_Thickening",
    "Pleural thickening": "Pleural_Thickening",
    "pleural thickening": "Pleural_Thickening",
    "Pulmonary fibrosis": "Fibrosis",
    "Other disease": "Other Diseases",
    "pneumoperitoneo": "Pneumoperitoneum",
}


def marked(text: str, phantom: bool, separator: str = ": ") -> str:
    """A text, marked in front if it is about phantom images."""
    return f"{PHANTOM_DATA}{separator}{text}" if phantom else text


def is_spreadsheet_safe(name: str) -> bool:
    """Whether a spreadsheet shows the name as plain text when it opens a CSV file."""
    return name.isprintable() and not name.lstrip().startswith(FORMULA)


def canonical(name: str) -> str:
    """Canonical name of a finding: that of torchxrayvision, or else with capitalized words."""
    if name in ALIASES:
        return ALIASES[name]
    # torchxrayvision keeps these names of VinDr-CXR.
    if name in ("Aortic enlargement", "Enlarged PA"):
        return name
    return " ".join(word if word[:1].isupper() else word[:1].upper() + word[1:] for word in name.split(" "))


def _set(names: str) -> dict[str, str]:
    """Finding -> original name, in the order of a text with names separated by commas or line breaks."""
    originals = [name.strip() for name in names.replace("\n", ",").split(",") if name.strip()]
    return {canonical(name): name for name in originals}


# CheXpert's fourteen observations without "No Finding", in the order of train.csv.
_CHEXPERT = _set(
    """Enlarged Cardiomediastinum, Cardiomegaly, Lung Opacity, Lung Lesion, Edema, Consolidation, Pneumonia,
    Atelectasis, Pneumothorax, Pleural Effusion, Pleural Other, Fracture, Support Devices"""
)
_CXR_LT_26 = """Atelectasis, Calcification of the Aorta, Cardiomegaly, Consolidation, Edema, Emphysema,
    Enlarged Cardiomediastinum, Fibrosis, Fracture, Hernia, Infiltration, Lung Lesion, Lung Opacity, Mass, {},
    Nodule, Pleural Effusion, Pleural Other, Pleural Thickening, Pneumomediastinum, Pneumonia, Pneumoperitoneum,
    Pneumothorax, Subcutaneous Emphysema, Support Devices, Tortuous Aorta"""
_CXR_LT_2024_TASK1 = _set(
    """Adenopathy, Atelectasis, Azygos Lobe, Calcification of the Aorta, Cardiomegaly, Clavicle Fracture,
    Consolidation, Edema, Emphysema, Enlarged Cardiomediastinum, Fibrosis, Fissure, Fracture, Granuloma, Hernia,
    Hydropneumothorax, Infarction, Infiltration, Kyphosis, Lobar Atelectasis, Lung Lesion, Lung Opacity, Mass,
    Nodule, Normal, Pleural Effusion, Pleural Other, Pleural Thickening, Pneumomediastinum, Pneumonia,
    Pneumoperitoneum, Pneumothorax, Pulmonary Embolism, Pulmonary Hypertension, Rib Fracture,
    Round(ed) Atelectasis, Subcutaneous Emphysema, Support Devices, Tortuous Aorta, Tuberculosis"""
)
_CXR_LT_2024_UNSEEN = _set("Bulla, Cardiomyopathy, Hilum, Osteopenia, Scoliosis")
_CXR_LT_2026 = _set(
    """Normal, aortic elongation, cardiomegaly, pleural effusion, Nodule, atelectasis, pleural thickening,
    aortic atheromatosis, Support Devices, alveolar pattern, fracture, Hernia, Emphysema, azygos lobe,
    Hydropneumothorax, Kyphosis, Mass, Pneumothorax, Subcutaneous Emphysema, pneumoperitoneo,
    vascular hilar enlargement, vertebral degenerative changes, hyperinflated lung, interstitial pattern,
    central venous catheter, hypoexpansion, bronchiectasis, hemidiaphragm elevation, sternotomy,
    calcified densities"""
)
# 22 local labels and 6 global ones without "No finding", in the order of image_labels_train.csv.
_VINDR = _set(
    """Aortic enlargement, Atelectasis, Calcification, Cardiomegaly, Clavicle fracture, Consolidation, Edema,
    Emphysema, Enlarged PA, ILD, Infiltration, Lung Opacity, Lung cavity, Lung cyst, Mediastinal shift,
    Nodule/Mass, Pleural effusion, Pleural thickening, Pneumothorax, Pulmonary fibrosis, Rib fracture,
    Other lesion, COPD, Lung tumor, Pneumonia, Tuberculosis, Other diseases"""
)
# torchxrayvision's classes of PadChest (without its technical "Tube"); sources/padchest.py maps words to them.
_PADCHEST = _set(
    """Air Trapping, Aortic Atheromatosis, Aortic Elongation, Atelectasis, Bronchiectasis, Cardiomegaly,
    Consolidation, Costophrenic Angle Blunting, Edema, Effusion, Emphysema, Fibrosis, Flattened Diaphragm,
    Fracture, Granuloma, Hemidiaphragm Elevation, Hernia, Hilar Enlargement, Infiltration, Mass, Nodule,
    Pleural_Thickening, Pneumonia, Pneumothorax, Scoliosis, Support Devices, Tuberculosis"""
)
_NIH = {finding: finding for finding in NIH_FINDINGS}

# The registry of sources: each is a module of that name in ral/data/sources/.
SourceName = Literal[
    "nih",
    "chexpert",
    "mimic",
    "padchest",
    "vindr",
    "chestmnist",
    "table",
]

# Source -> label set -> finding -> original name. The first set of a source is its default; table has none.
LABEL_SETS: dict[str, dict[str, dict[str, str]]] = {
    "nih": {"nih": _NIH},
    "chexpert": {"chexpert": _CHEXPERT},
    "mimic": {
        "chexpert": _CHEXPERT,
        "cxr_lt_2023": _set(_CXR_LT_26.format("No Finding")),
        "cxr_lt_2024_task1": _CXR_LT_2024_TASK1,
        "cxr_lt_2024_task2": _set(_CXR_LT_26.format("Normal")),
        "cxr_lt_2024_all": dict(sorted((_CXR_LT_2024_TASK1 | _CXR_LT_2024_UNSEEN).items())),
    },
    "padchest": {"padchest": _PADCHEST, "cxr_lt_2026": _CXR_LT_2026},
    "vindr": {"vindr": _VINDR},
    "chestmnist": {"nih": _NIH},
}

# In front of what is about phantom images.
PHANTOM_DATA = "PHANTOM DATA"

# What results are computed from: phantom if at least one image is a phantom; they then have no clinical meaning.
Data = Literal["phantom", "images"]

Tier = Literal["head", "medium", "tail"]
TIERS: tuple[Tier, ...] = ("head", "medium", "tail")


def tier(positives: int, images: int, head: float, tail: float) -> Tier:
    """Tier of a finding with `positives` among `images` training images with a known label.

    Head is a prevalence above `head`, tail at most `tail`, medium in between (CXR-LT 2024 uses 10 % and 1 %).
    """
    prevalence = positives / images
    if prevalence > head:
        return "head"
    return "tail" if prevalence <= tail else "medium"


def unknown_finding(names: Iterable[str], allowed: Iterable[str]) -> str | None:
    """Error text for the first name that is not allowed, with the most similar one; None if all are allowed."""
    allowed = tuple(allowed)
    for name in names:
        if name not in allowed:
            return f"unknown finding `{name}`.{did_you_mean(name, allowed)} Allowed: {', '.join(allowed)}"
    return None


def patient_counts(labels: "NDArray[Any]", patients: "NDArray[Any]") -> tuple[int, int]:
    """Number of patients with a positive image of a finding, and with a negative one.

    Args:
        labels: 1, 0 or NaN [rows].
        patients: patient of each row [rows].
    """
    positive, negative = (len(set(patients[labels == value].tolist())) for value in (1, 0))
    return positive, negative
