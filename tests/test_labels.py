"""Vocabularies: spelled as in torchxrayvision, complete, and a typing error names the nearest."""

from ral.labels import LABEL_SETS, NIH_FINDINGS, NO_FINDING, canonical, tier, unknown_finding

# The eighteen of torchxrayvision's default_pathologies.
XRV = {*NIH_FINDINGS, "Lung Lesion", "Fracture", "Lung Opacity", "Enlarged Cardiomediastinum"}


def test_label_sets_have_the_published_number_of_classes() -> None:
    sizes = {name: len(names) for sets in LABEL_SETS.values() for name, names in sets.items()}
    assert sizes == {
        "nih": 14, "chexpert": 13, "cxr_lt_2023": 26, "cxr_lt_2024_task1": 40, "cxr_lt_2024_task2": 26,
        "cxr_lt_2024_all": 45, "padchest": 27, "cxr_lt_2026": 30, "vindr": 27,
    }  # fmt: skip


def test_one_finding_has_one_name_in_every_source() -> None:
    names = {name for sets in LABEL_SETS.values() for names in sets.values() for name in names}
    folded: dict[str, set[str]] = {}
    for name in names:
        folded.setdefault(name.casefold().replace("_", " ").removeprefix("pleural effusion"), set()).add(name)
    assert all(len(spellings) == 1 for spellings in folded.values())
    assert names >= XRV
    assert not {"Pleural Effusion", "Pleural Thickening", "Normal", "No finding"} & names
    # CXR-LT 2024 holds the classes of 2023.
    mimic = LABEL_SETS["mimic"]
    assert set(mimic["cxr_lt_2023"]) == set(mimic["cxr_lt_2024_task2"]) < set(mimic["cxr_lt_2024_task1"])
    assert set(mimic["cxr_lt_2024_task1"]) < set(mimic["cxr_lt_2024_all"])
    assert mimic["cxr_lt_2023"][NO_FINDING] == "No Finding"
    assert mimic["cxr_lt_2024_task2"][NO_FINDING] == "Normal"


def test_canonical() -> None:
    assert canonical("Pleural effusion") == "Effusion"
    assert canonical("azygos lobe") == "Azygos Lobe"
    assert canonical("COPD") == "COPD"
    assert canonical("Round(ed) Atelectasis") == "Round(ed) Atelectasis"


def test_unknown_finding() -> None:
    assert unknown_finding(["Mass"], NIH_FINDINGS) is None
    assert unknown_finding(["Mass", "Masses"], NIH_FINDINGS).startswith(
        "unknown finding `Masses`. Did you mean `Mass`?"
    )  # type: ignore[union-attr]


def test_tier_by_training_count() -> None:
    assert tier(101, 1000, 0.1, 0.01) == "head"
    assert tier(100, 1000, 0.1, 0.01) == "medium"
    assert tier(11, 1000, 0.1, 0.01) == "medium"
    assert tier(10, 1000, 0.1, 0.01) == "tail"
