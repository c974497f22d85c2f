"""PadChest (Bustos et al., 2020) from BIMCV, with its own labels or the thirty classes of CXR-LT 2026.

`data.root` has PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz and the images: unpacked into the numbered
folders 0/ … 54/ (there, or in images/), or all in one folder or archive images*. CXR-LT 2026 adds
CXRLT_2026_training.csv; if PadChest's table is there too, it provides view, sex and age.
"""

import ast
from dataclasses import replace
from pathlib import Path

import pandas as pd

from ral.config.data import DataConfig
from ral.data.sources.base import ColumnLabels, DelimitedLabels, Layout, Source
from ral.data.sources.text import find_table, read_header, read_text
from ral.errors import UserError
from ral.labels import NO_FINDING

_TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
TABLES = (_TABLE + ".gz", _TABLE)
CXR_LT_TABLES = ("CXRLT_2026_training.csv",)
# Reports and other texts or dates are never read; the study date only gives the age and is dropped.
COLUMNS = (
    "ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM",
    "Projection", "Labels",
)  # fmt: skip
# High values of MONOCHROME1 images are dark, unless the conversion to PNG inverted them. Some tables lack this column.
PHOTOMETRIC = "PhotometricInterpretation_DICOM"

# Finding -> its words in `Labels`; torchxrayvision's mapping, but matching whole words instead of substrings.
MEANINGS = {
    "Air Trapping": "air trapping",
    "Aortic Atheromatosis": "aortic atheromatosis",
    "Aortic Elongation": "aortic elongation, ascendent aortic elongation, descendent aortic elongation",
    "Atelectasis": """atelectasis, atelectasis basal, laminar atelectasis, lobar atelectasis, round atelectasis,
        segmental atelectasis, total atelectasis""",
    "Bronchiectasis": "bronchiectasis",
    "Cardiomegaly": "cardiomegaly",
    "Consolidation": "consolidation, air bronchogram",
    "Costophrenic Angle Blunting": "costophrenic angle blunting",
    "Edema": "pulmonary edema",
    "Effusion": "pleural effusion, loculated pleural effusion, loculated fissural effusion",
    "Emphysema": "emphysema",
    "Fibrosis": "pulmonary fibrosis",
    "Flattened Diaphragm": "flattened diaphragm",
    "Fracture": """fracture, callus rib fracture, clavicle fracture, humeral fracture, rib fracture,
        vertebral fracture""",
    "Granuloma": "granuloma, calcified granuloma",
    "Hemidiaphragm Elevation": "hemidiaphragm elevation",
    "Hernia": "hiatal hernia",
    "Hilar Enlargement": """hilar enlargement, vascular hilar enlargement, adenopathy,
        pulmonary artery enlargement""",
    "Infiltration": """infiltrates, interstitial pattern, ground glass pattern, reticular interstitial pattern,
        reticulonodular interstitial pattern, alveolar pattern, consolidation, air bronchogram""",
    "Mass": "mass, mediastinal mass, pleural mass, pulmonary mass",
    "Nodule": "nodule, multiple nodules",
    "Pleural_Thickening": "pleural thickening, apical pleural thickening, calcified pleural thickening",
    "Pneumonia": "pneumonia, atypical pneumonia",
    "Pneumothorax": "pneumothorax, hydropneumothorax",
    "Scoliosis": "scoliosis",
    "Support Devices": "dual chamber device, single chamber device, electrical device, pacemaker",
    "Tuberculosis": "tuberculosis, tuberculosis sequelae",
}
# The rest of the vocabulary: words of which no finding above is made.
OTHER_WORDS = """COPD signs, Chilaiditi sign, NSG tube, abnormal foreign body, abscess, air fluid level,
    aortic aneurysm,
    aortic button enlargement, aortic endoprosthesis, artificial aortic heart valve, artificial heart valve,
    artificial mitral heart valve, asbestosis signs, axial hyperostosis, azygoesophageal recess shift, azygos lobe,
    blastic bone lesion, bone cement, bone metastasis, breast mass, bronchovascular markings, bullas,
    calcified adenopathy, calcified densities, calcified fibroadenoma, calcified mediastinal adenopathy,
    calcified pleural plaques, catheter, cavitation, central vascular redistribution, central venous catheter,
    central venous catheter via jugular vein, central venous catheter via subclavian vein,
    central venous catheter via umbilical vein, cervical rib, chest drain tube, chronic changes,
    costochondral junction hypertrophy, cyst, dai, dextrocardia, diaphragmatic eventration, double J stent, empyema,
    end on vessel, endoprosthesis, endotracheal tube, esophagic dilatation, external foreign body, fibrotic band,
    fissure thickening, gastrostomy tube, goiter, gynecomastia, heart insufficiency, heart valve calcified,
    hilar congestion, humeral prosthesis, hyperinflated lung, hypoexpansion, hypoexpansion basal, increased density,
    kerley lines, kyphosis, lepidic adenocarcinoma, lipomatosis, lung metastasis, lung vascular paucity,
    lymphangitis carcinomatosa, lytic bone lesion, major fissure thickening, mammary prosthesis, mastectomy,
    mediastinal enlargement, mediastinal shift, mediastinic lipomatosis, metal, miliary opacities,
    minor fissure thickening, nephrostomy tube, nipple shadow, non axial articular degenerative changes, normal,
    obesity, osteopenia, osteoporosis, osteosynthesis material, pectum carinatum, pectum excavatum,
    pericardial effusion, pleural plaques, pneumomediastinum, pneumoperitoneo, post radiotherapy changes, prosthesis,
    pseudonodule, pulmonary artery hypertension, pulmonary hypertension, pulmonary venous hypertension,
    reservoir central venous catheter, respiratory distress, right sided aortic arch, sclerotic bone lesion,
    soft tissue mass, sternoclavicular junction hypertrophy, sternotomy, subacromial space narrowing,
    subcutaneous emphysema, superior mediastinal enlargement, supra aortic elongation, surgery, surgery breast,
    surgery heart, surgery humeral, surgery lung, surgery neck, suture material, thoracic cage deformation,
    tracheal shift, tracheostomy tube, vascular redistribution, ventriculoperitoneal drain tube,
    vertebral anterior compression, vertebral compression, vertebral degenerative changes, volume loss"""
# Words that make the labels of an image unknown.
UNKNOWN = frozenset({"", "exclude", "suboptimal study", "unchanged"})


def _words(text: str) -> list[str]:
    return [" ".join(word.split()).lower() for word in text.split(",")]


def parse(text: str) -> list[str]:
    """Parse a Python list literal such as `['normal', ' pleural effusion']` to lower-case words, without executing it.

    Raises:
        ValueError, SyntaxError: it is not a list of texts.
    """
    if not text.strip():
        return [""]
    words = ast.literal_eval(text)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError("not a list of words")
    # Empty words occur beside findings and are ignored; an empty word alone means unknown.
    return [" ".join(word.split()).lower() for word in words if word.strip()] or [""]


def vocabulary() -> dict[str, tuple[str, ...]]:
    """Every word -> its findings, in the order of MEANINGS."""
    words: dict[str, tuple[str, ...]] = {}
    for finding, text in MEANINGS.items():
        for word in _words(text):
            words[word] = (*words.get(word, ()), finding)
    return words | dict.fromkeys((*_words(OTHER_WORDS), *sorted(UNKNOWN)), ())


class Reader(Source):
    """`Projection` is the view as verified by BIMCV."""

    def __init__(self, config: DataConfig) -> None:
        super().__init__(config)
        self.cxr_lt = config.labels == "cxr_lt_2026"
        layout = Layout(
            image="ImageID",
            patient="PatientID",
            study="StudyID",
            path="file" if self._base() is not None else None,
            view="Projection",
            views={
                "PA": "PA", "AP": "AP", "AP_horizontal": "AP", "L": "LATERAL",
                "COSTAL": "OTHER", "EXCLUDE": "OTHER", "UNK": "OTHER", "": "OTHER",
            },
            sex="PatientSex_DICOM",
            sexes={"M": "M", "F": "F", "O": None, "None": None, "": None},
            age="age",
            labels=DelimitedLabels(
                "Labels", parse, vocabulary(), UNKNOWN, frozenset({"normal"}), "commas in a Python list"
            ),
            photometric=PHOTOMETRIC if self._has_photometric() else None,
            vocabulary="warning",
            contradiction="warning",
        )  # fmt: skip
        if self.cxr_lt:
            columns = ColumnLabels(self.label_set, no_finding=self.label_set[NO_FINDING])
            layout = replace(layout, labels=columns)
            if not self._has_padchest_table():
                layout = replace(layout, study=None, view=None, sex=None, age=None, path=None)
        self.layout = layout

    def _has_padchest_table(self) -> bool:
        return any((self.root / name).is_file() for name in TABLES)

    def _has_photometric(self) -> bool:
        paths = [self.root / name for name in TABLES]
        return any(path.is_file() and PHOTOMETRIC in read_header(path) for path in paths)

    def _base(self) -> str | None:
        """Parent of the numbered folders, relative to the root; None if there are none."""
        for base in ("", "images/"):
            if any((self.root / base / str(number)).is_dir() for number in range(55)):
                return base
        return None

    def tables(self) -> list[Path]:
        padchest = [find_table(self.root, TABLES)] if not self.cxr_lt or self._has_padchest_table() else []
        return [*([find_table(self.root, CXR_LT_TABLES)] if self.cxr_lt else []), *padchest]

    def read(self) -> pd.DataFrame:
        tables = self.tables()
        columns = (*COLUMNS, PHOTOMETRIC) if self.layout.photometric else COLUMNS
        padchest = _derive(read_text(tables[-1], columns)) if tables[-1].name in TABLES else None
        if padchest is not None and self._base() is not None:
            padchest["file"] = str(self._base()) + padchest["ImageDir"] + "/" + padchest["ImageID"]
        if not self.cxr_lt:
            assert padchest is not None  # ensured by tables()
            return padchest
        rows = read_text(tables[0], ("ImageID", "PatientID", *self.label_set.values()))
        if padchest is None:
            return rows
        if padchest["ImageID"].duplicated().any():
            duplicate = padchest.loc[padchest["ImageID"].duplicated(), "ImageID"].iloc[0]
            raise UserError(f"{tables[-1]}: {duplicate} occurs twice. Keep one row.")
        padchest = padchest.drop(columns=["row", "PatientID", "Labels"])
        joined = rows.merge(padchest, on="ImageID", how="left")
        return joined.fillna(dict.fromkeys(padchest.columns, ""))


def _derive(table: pd.DataFrame) -> pd.DataFrame:
    """Replace birth year and study date by the age in years."""
    year = pd.to_numeric(table["StudyDate_DICOM"].str.slice(0, 4), errors="coerce")
    age = year - pd.to_numeric(table["PatientBirth"], errors="coerce")
    text = age.map(lambda value: "" if value != value else f"{value:.0f}").astype("str")
    return table.drop(columns=["StudyDate_DICOM", "PatientBirth"]).assign(age=text)
