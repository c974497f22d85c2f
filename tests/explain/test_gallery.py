"""The step explain on small prepared data: files, pictures, bytes, and what must not be written."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ral.config.base import load
from ral.config.evaluate import EvaluateParams
from ral.config.explain import ExplainConfig, ExplainParams
from ral.data.splits.holdout import sealed
from ral.errors import UserError
from ral.explain.gallery import overlay, save
from tasks.explain import run

ROOT = Path(__file__).parent.parent.parent

# Two feature maps.
CROSS_VIT = {
    "img_size": 64, "embed_dim": [16, 32], "num_heads": [2, 2], "patch_size": [8, 16], "img_scale": [1, 1]
}  # fmt: skip


def params(sealed: float = 0.0, **changes: object) -> ExplainParams:
    evaluate = load(ROOT / "params.yaml", EvaluateParams).evaluate.model_copy(update={"sealed": sealed})
    explain = ExplainConfig.model_validate({"threads": 1, "per_kind": 2, **changes})
    return ExplainParams(explain=explain, evaluate=evaluate)


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def pictures(content: dict) -> list[dict]:
    kinds = ("hits", "false_positives", "misses")
    return [entry for finding in content["findings"] for kind in kinds for entry in finding[kind]]


@pytest.mark.parametrize(
    ("backbone", "head", "method"),
    [
        ("test_resnet", "linear", "grad_cam"),
        ("test_convnext", "csra", "grad_cam"),
        ("vit_fine", "linear", "rollout"),
        ("vit_fine", "ml_decoder", "rollout"),
    ],
)
def test_gallery(
    prepared: Path, make_model: Callable[..., Path], tmp_path: Path, backbone: str, head: str, method: str
) -> None:
    options = {"options": {"img_size": 64, "patch_size": 8}} if backbone == "vit_fine" else {}
    models, out = make_model(backbone.replace("vit_fine", "test_vit"), head, **options), tmp_path / "reports"
    run(params(), prepared, models, out)
    assert {path.name for path in out.iterdir()} == {"gallery", "geometry.json", "confusion.csv"}
    content = json.loads((out / "gallery/gallery.json").read_text())
    assert (content["method"], content["data"]) == (method, "images")
    assert content["positions"] == [8, 8]
    assert (content["layer"] is None) == (method == "rollout")
    assert "not a medical device" in content["notice"]
    findings = {finding["finding"]: finding for finding in content["findings"]}
    assert list(findings) == ["Effusion", "Mass", "Hernia"]
    assert findings["Hernia"]["hits"] == findings["Hernia"]["false_positives"] == []
    assert "No test image" in findings["Hernia"]["note"]
    entries = pictures(content)
    assert len(entries) == 12
    studies = pd.read_parquet(prepared / "studies.parquet").set_index("image_id")
    logits = pd.read_parquet(models / "logits/test.parquet").set_index("image_id")
    for name in ("Effusion", "Mass"):
        for entry in findings[name]["hits"]:
            labels = studies.loc[entry["image_id"], ["Effusion", "Mass", "Hernia"]]
            assert studies.loc[entry["image_id"], "split"] == "test"
            assert name in entry["labels"]
            assert entry["labels"] == list(labels.index[labels == 1])
            assert entry["unknown"] == list(labels.index[labels.isna()])
            assert entry["logit"] == pytest.approx(logits.loc[entry["image_id"], name], abs=1e-6)
    # One picture per image, however often it is shown; generated names, and no other file.
    assert len({entry["image"] for entry in entries}) == len({entry["image_id"] for entry in entries})
    named = {entry[key] for entry in entries for key in ("image", "map")}
    assert {path.name for path in (out / "gallery").iterdir()} == named | {"gallery.json"}
    assert all(name.removesuffix(".jpg").split("_")[1].isdigit() for name in named)
    for entry in entries:
        assert Image.open(out / "gallery" / entry["image"]).mode == "L"
        assert Image.open(out / "gallery" / entry["map"]).size == (64, 64)
    geometry = json.loads((out / "geometry.json").read_text())
    assert ("not_available" in geometry["classifier"]) == (head == "ml_decoder")
    confused = pd.read_csv(out / "confusion.csv")
    assert len(confused) == 6
    assert set(confused["data"]) == {"images"}


def test_a_image_and_its_picture_belong_together(
    prepared: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    from ral.data.dataset import open_dataset

    run(params(), prepared, make_model(), tmp_path / "out")
    dataset = open_dataset(prepared)
    rows = {name: row for row, name in enumerate(dataset.studies["image_id"])}
    for entry in pictures(json.loads((tmp_path / "out/gallery/gallery.json").read_text())):
        image = dataset.gather(np.array([rows[entry["image_id"]]]))[0].astype(float)
        shown = np.asarray(Image.open(tmp_path / "out/gallery" / entry["image"])).astype(float)
        assert np.corrcoef(image.ravel(), shown.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_same_bytes_again(
    prepared: Path, make_model: Callable[..., Path], tmp_path: Path, backbone: str
) -> None:
    models = make_model(backbone)
    for name in ("first", "second"):
        run(params(), prepared, models, tmp_path / name)
    assert tree(tmp_path / "first") == tree(tmp_path / "second")


def test_images_that_may_not_be_shown_leave_no_picture(
    prepared: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    models, out = make_model(), tmp_path / "reports"
    run(params(), prepared, models, out)
    shown = json.loads((out / "gallery/gallery.json").read_text())
    (out / "report.html").write_text("another step's")
    run(params(show_images=False), prepared, models, out)  # pictures of the earlier run are removed too
    assert set(tree(out)) == {"confusion.csv", "gallery/gallery.json", "geometry.json", "report.html"}
    content = json.loads((out / "gallery/gallery.json").read_text())
    assert content["images"] is False
    assert {key for entry in pictures(content) for key in entry} == {"image_id", "logit", "rank"}
    assert [entry["image_id"] for entry in pictures(content)] == [
        entry["image_id"] for entry in pictures(shown)
    ]


def test_a_review_of_labels_is_written_beside_the_gallery(
    prepared: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    run(params(review={"labels": 3, "folds": 2}), prepared, make_model(), tmp_path / "out")
    content = json.loads((tmp_path / "out/gallery/gallery.json").read_text())["review"]
    table = pd.read_csv(tmp_path / "out/gallery/label_review.csv")
    assert table["image_id"].tolist() == [label["image_id"] for label in content]
    assert 0 < table["finding"].value_counts().max() <= 3


def test_network_without_maps_shows_images_alone(
    prepared: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    models = make_model("crossvit_9_240", options=CROSS_VIT)
    run(params(), prepared, models, tmp_path / "out")
    content = json.loads((tmp_path / "out/gallery/gallery.json").read_text())
    assert content["method"] is None
    assert "more than one last feature map" in content["reason"]
    assert {"image", "labels"} <= set(pictures(content)[0])
    assert not list((tmp_path / "out/gallery").glob("map_*"))
    with pytest.raises(UserError, match="more than one last feature map"):
        run(params(method="grad_cam"), prepared, models, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("findings", ["Mass", "Effusion", "Hernia"], "findings"),
        ("size", 32, "size"),
        ("phantom", True, "phantom"),
    ],
)
def test_network_of_other_images_is_refused(
    prepared: Path, make_model: Callable[..., Path], tmp_path: Path, name: str, value: object, words: str
) -> None:
    models = make_model()
    metadata = json.loads((models / "model.json").read_text()) | {name: value}
    (models / "model.json").write_text(json.dumps(metadata))
    with pytest.raises(UserError, match=f"differ in `{words}`.*trained on other images"):
        run(params(), prepared, models, tmp_path / "out")


def test_logits_of_other_images_are_refused(
    prepared: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    models = make_model()
    logits = pd.read_parquet(models / "logits/test.parquet")
    logits.iloc[1:].to_parquet(models / "logits/test.parquet", index=False)
    with pytest.raises(UserError, match="without logits"):
        run(params(), prepared, models, tmp_path / "out")


def test_overlay_and_thumbnail(tmp_path: Path) -> None:
    image = np.array([[100, 100], [0, 250]], np.uint8)
    shown = overlay(image, np.array([[0, 1], [0, 0.5]], np.float32))
    assert shown[0, 0].tolist() == [100] * 3
    assert shown[1, 0].tolist() == [0] * 3
    # The hottest colour of plasma is (240, 249, 33), of which 0.6 are seen.
    assert shown[0, 1].tolist() == pytest.approx([0.4 * 100 + 0.6 * c for c in (240, 249, 33)], abs=1)
    save(tmp_path / "small.jpg", np.zeros((300, 300), np.uint8), 128)
    assert Image.open(tmp_path / "small.jpg").size == (128, 128)
    save(tmp_path / "large.jpg", np.zeros((30, 30), np.uint8), 128)
    assert Image.open(tmp_path / "large.jpg").size == (30, 30)  # not enlarged


def test_sealed_patients_are_in_no_picture(
    prepared: Path, make_model: Callable[..., Path], tmp_path: Path
) -> None:
    models = make_model()
    run(params(sealed=0.5), prepared, models, tmp_path / "before")
    path = models / "logits/test.parquet"
    logits, studies = pd.read_parquet(path), pd.read_parquet(prepared / "studies.parquet")
    hidden = logits["image_id"].isin(studies.loc[sealed(studies, 0.5), "image_id"]).to_numpy()
    assert 0 < hidden.sum() < len(hidden)
    logits.loc[hidden, ["Effusion", "Mass", "Hernia"]] *= -100
    logits.to_parquet(path)
    run(params(sealed=0.5), prepared, models, tmp_path / "after")
    assert tree(tmp_path / "after") == tree(tmp_path / "before")
    run(params(), prepared, models, tmp_path / "open")
    assert tree(tmp_path / "open") != tree(tmp_path / "before")
