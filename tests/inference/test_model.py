"""A released model in Python: the same pixels as training, probabilities of evaluate, results independent of the batch."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from PIL import Image

from ral.data.dataset import open_dataset
from ral.errors import UserError
from ral.evaluation import calibration_io
from ral.explain.gallery import heat_maps
from ral.explain.saliency import choose_method, enlarge
from ral.files import read_json, write_json
from ral.inference.images import png, read_inputs
from ral.inference.model import Model, load_model
from ral.inference.released import find_model, open_model
from ral.inference.scoring import Predictor, compare, prepare_image
from ral.models.inputs import normalised


def columns(model: Model, kind: str) -> list[str]:
    return [f"{name}_{kind}" for name in model.findings]


def test_pixels_are_the_bytes_that_preprocess_packed(project: Path, folder: Path, model: Model) -> None:
    dataset = open_dataset(project / "data/prepared")
    packed = dict(
        zip(dataset.studies["image_id"], dataset.gather(np.arange(len(dataset.studies))), strict=True)
    )
    preparation = open_model(project).preparation
    read = {image.name: prepare_image(image, preparation).pixels for image in read_inputs([folder])}
    assert sorted(read) == sorted(packed)
    assert all(pixels.tobytes() == packed[name].tobytes() for name, pixels in read.items())


def test_the_profile_is_that_of_the_training_images(project: Path) -> None:
    dataset = open_dataset(project / "data/prepared")
    rows = dataset.rows("train")
    pixels = dataset.gather(rows).reshape(len(rows), -1)
    profile = open_model(project).profile
    assert profile is not None
    assert profile.views == dataset.studies.loc[rows, "view"].astype(str).value_counts().to_dict()
    np.testing.assert_allclose(
        profile.image_mean, np.quantile(pixels.mean(axis=1), [0.005, 0.995]), atol=1e-3
    )
    np.testing.assert_allclose(
        profile.image_deviation, np.quantile(pixels.std(axis=1), [0.005, 0.995]), atol=1e-3
    )


def test_logits_are_those_of_the_training(project: Path, folder: Path, model: Model) -> None:
    stored = pd.read_parquet(project / "models/logits/test.parquet").set_index("image_id")
    table = model.predict(folder).set_index("image").loc[stored.index]
    np.testing.assert_allclose(table[columns(model, "logit")], stored[list(model.findings)], atol=1e-5)


def test_probabilities_and_decisions_are_those_of_evaluate(project: Path, folder: Path, model: Model) -> None:
    table = model.predict(folder)
    logits = table[["image", *columns(model, "logit")]].set_axis(["image_id", *model.findings], axis=1)
    scores, calls = calibration_io.apply(read_json(project / "reports/calibration.json"), logits)
    assert any(name in scores and scores[name].notna().all() for name in model.findings)
    for name in model.findings:
        np.testing.assert_array_equal(table[f"{name}_probability"], scores[name])
        assert table[f"{name}_decision"].equals(calls[name].rename(f"{name}_decision"))


@pytest.mark.parametrize("workers", [1, 3])
def test_an_image_has_the_same_bits_alone_in_a_batch_and_in_another_order(
    project: Path, folder: Path, model: Model, workers: int
) -> None:
    paths = sorted(folder.iterdir())[:40]
    together = model.predict(paths).set_index("image")
    predictor = Predictor([open_model(project)], torch.device("cpu"), workers=workers)
    other_order = Model(predictor).predict(paths[::-1]).set_index("image")
    assert together.equals(other_order.loc[together.index])
    for path in paths[::13]:
        assert model.predict(path).set_index("image").equals(together.loc[[str(path)]])


def test_pass_is_filled_up(project: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norm in train mode, or passes of different sizes, would make images depend on each other."""
    shapes = set()
    network = model._released.network
    handle = network.register_forward_pre_hook(lambda _, inputs: shapes.add(tuple(inputs[0].shape)))
    model.predict([np.arange(48 * 48, dtype=np.uint8).reshape(48, 48)] * 19)
    handle.remove()
    assert shapes == {(16, 1, 32, 32)}


def test_arrays_and_pictures_are_read_as_their_files(folder: Path, model: Model, tmp_path: Path) -> None:
    path = next(folder.iterdir())
    picture = Image.open(path)
    table = model.predict([path, np.asarray(picture), picture])
    assert table["image"].tolist() == [str(path), "1", "2"]
    numbers = [*columns(model, "logit"), *columns(model, "probability")]
    assert table.loc[0, numbers].equals(table.loc[1, numbers])
    assert table.loc[0, numbers].equals(table.loc[2, numbers])
    deep = np.random.default_rng(0).integers(0, 4096, (64, 64), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert (model.pixels(deep) == model.pixels(tmp_path / "deep.png")).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    picture.convert("RGB").save(tmp_path / "turned.jpg", exif=exif, quality=95)
    turned = Image.open(tmp_path / "turned.jpg")
    assert (model.pixels(turned) == model.pixels(tmp_path / "turned.jpg")).all()
    with pytest.raises(UserError, match=r"float32.*is not an image"):
        png(np.zeros((4, 4), np.float32))
    with pytest.raises(UserError, match="type int is no image"):
        model.predict([3])  # type: ignore[list-item]


def test_logits_of_a_tensor(folder: Path, model: Model) -> None:
    paths = sorted(folder.iterdir())[:3]
    pixels = torch.from_numpy(np.stack([model.pixels(path) for path in paths]))
    expected = model.predict(paths)[columns(model, "logit")].to_numpy(np.float32)
    assert model.logits(pixels).numpy().tobytes() == expected.tobytes()
    with pytest.raises(UserError, match="logits takes uint8"):
        model.logits(pixels.float())


def test_heat_map_is_that_of_the_gallery(project: Path, folder: Path, model: Model) -> None:
    path, released = next(folder.iterdir()), open_model(project)
    images = normalised(torch.from_numpy(model.pixels(path)[None].copy()), released.info)
    choice = choose_method(released.network, "auto", images)  # type: ignore[arg-type]
    if choice.method is None:
        with pytest.raises(UserError, match="no heat maps"):
            model.explain(path, model.findings[2])
        return
    coarse = heat_maps(released.network, images, 2, choice)  # type: ignore[arg-type]
    heat = model.explain(path, model.findings[2])
    np.testing.assert_allclose(heat, enlarge(coarse, 32)[0], atol=1e-6)
    assert heat.shape == (32, 32)
    with pytest.raises(UserError, match="no finding Nothing"):
        model.explain(path, "Nothing")


def test_flip_is_the_mean_of_both_images(project: Path, folder: Path, model: Model) -> None:
    pixels = np.stack([model.pixels(path) for path in sorted(folder.iterdir())[:3]])
    flipped = Predictor([open_model(project)], torch.device("cpu"), flip=True)
    expected = (
        model.logits(torch.from_numpy(pixels)) + model.logits(torch.from_numpy(pixels[..., ::-1].copy()))
    ) / 2
    assert torch.equal(torch.from_numpy(flipped.raw_logits(0, pixels)), expected)


def test_several_models_are_the_mean_of_their_calibrated_logits(
    project: Path, folder: Path, model: Model
) -> None:
    weights = open_model(project)
    with torch.no_grad():
        for parameter in weights.network.parameters():
            parameter.mul_(1.05)
    paths = sorted(folder.iterdir())[:5]
    other = Model(Predictor([weights], torch.device("cpu"))).predict(paths)
    both = Model(Predictor([open_model(project), weights], torch.device("cpu"))).predict(paths)
    name = next(n for n in model.findings if not np.isnan(model.thresholds[n]))
    one, two = (t[f"{name}_probability"].to_numpy() for t in (model.predict(paths), other))
    assert not np.allclose(one, two)
    mean = (np.log(one / (1 - one)) + np.log(two / (1 - two))) / 2
    np.testing.assert_allclose(both[f"{name}_probability"], 1 / (1 + np.exp(-mean)), rtol=1e-9)
    assert (
        both[columns(model, "logit")].isna().all(axis=None)
    )  # raw logits of several models have no common scale


def test_images_unlike_the_training_images_are_named(project: Path, folder: Path, model: Model) -> None:
    table = model.predict(folder)
    assert (table["warning"] != "").mean() < 0.05
    dark = np.zeros((48, 48), np.uint8)
    dark[0, 0] = 255
    assert model.predict(dark).loc[0, "warning"] == (
        "brightness unlike the training images; contrast unlike the training images"
    )
    small = np.asarray(Image.open(next(folder.iterdir())))[::2, ::2]
    assert "smaller than the input" in model.predict(small).loc[0, "warning"]
    profile = open_model(project).profile
    assert profile is not None
    assert set(profile.views) == {"PA", "AP"}
    lateral = prepare_image(next(read_inputs([folder])), open_model(project).preparation)._replace(
        view="LATERAL"
    )
    assert compare(lateral.pixels[None], [lateral], profile)[0].endswith(
        "view LATERAL, not in the training images"
    )  # type: ignore[index]


def test_a_release_is_opened_by_folder_champion_and_version(
    release: Path, project: Path, folder: Path, tmp_path: Path, model: Model
) -> None:
    state = tmp_path / "state"
    assert find_model("champion", state) == find_model("v0.1.0", state) == release
    opened = open_model(release)
    assert opened.name.startswith("v0.1.0@")
    path = next(folder.iterdir())
    numbers = [*columns(model, "logit"), *columns(model, "probability"), *columns(model, "decision")]
    assert load_model(release).predict(path)[numbers].equals(model.predict(path)[numbers])
    assert "PHANTOM" in load_model(release).predict(path).loc[0, "notice"]
    for text, message in (("v9.0.0", "no v9.0.0 in the registry"), ("nothing", "There is no model nothing")):
        with pytest.raises(UserError, match=message):
            find_model(text, state)


def test_damaged_and_incomplete_models_are_refused(release: Path, project: Path, tmp_path: Path) -> None:
    calibration = release / "calibration.json"
    content = calibration.read_text()
    calibration.write_text(content.replace("1", "2", 1))
    with pytest.raises(UserError, match=r"calibration\.json has changed"):
        open_model(release)
    calibration.write_text(content)
    bundle = read_json(release / "bundle.json")
    del bundle["files"]["calibration.json"]
    write_json(release / "bundle.json", bundle)
    with pytest.raises(UserError, match="released without its calibration"):
        open_model(release)
    copy = Path(shutil.copytree(project, tmp_path / "copy"))
    saved = read_json(copy / "reports/calibration.json")
    del saved["findings"]["Mass"]
    write_json(copy / "reports/calibration.json", saved)
    with pytest.raises(UserError, match="is of a model with the findings"):
        open_model(copy)
    (copy / "reports/calibration.json").unlink()
    with pytest.raises(UserError, match="does not exist: without it the model has no probabilities"):
        open_model(copy / "models")


def test_a_model_of_an_earlier_version_takes_its_preparation_from_params(
    project: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(project, tmp_path / "copy"))
    metadata = read_json(copy / "models/model.json")
    assert metadata["preparation"] == {"size": 32, "fit": "stretch", "range": "own"}
    del metadata["preparation"], metadata["profile"]
    write_json(copy / "models/model.json", metadata)
    opened = open_model(copy)
    assert opened.preparation == open_model(project).preparation
    assert opened.profile is None
    (copy / "params.yaml").unlink()
    with pytest.raises(UserError, match="does not say how images are prepared"):
        open_model(copy)


def test_import_is_light() -> None:
    code = "import ral, sys; assert not {'torch', 'pandas', 'numpy'} & set(sys.modules); ral.load_model"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
