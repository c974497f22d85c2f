"""Exports give the network's logits in timm, onnxruntime and torch, and have all that is needed to use them."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from huggingface_hub import ModelCard
from PIL import Image
from simulated_release import write_bundle
from torch import Tensor

from ral.config.data import PhantomConfig
from ral.errors import UserError
from ral.export import check, main
from ral.files import read_json, sha256, write_json
from ral.inference.export_folder import MODEL_FILES
from ral.inference.released import open_model
from ral.inference.score import normalised
from ral.models import import_timm
from ral.models.load import load_network
from ral.phantom.population import draw_population
from ral.phantom.signs import draw_image

# As in the fixture `project`.
FINDINGS, SIZE = ["Effusion", "Hernia", "Mass"], 64
Project = Callable[..., Path]

needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")),
    reason="needs the extra onnx",
)
KINDS = ["timm", pytest.param("onnx", marks=needs_onnx), "torch"]
LINEAR = [
    {},
    {"channels": 3},
    {"options": {"channels": [8, 16, 16, 24]}, "drop_path": 0.1},
    {"backbone": "test_vit.r160_in1k", "options": {"img_size": SIZE}},
    {"backbone": "test_convnext"},
]
OTHER_HEADS = [{"head": "csra", "channels": 3}, {"head": "ml_decoder", "ml_decoder": {"embedding": 32}}]


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    """Phantom images other than those that the export itself compares: uint8 [7, SIZE, SIZE]."""
    seed = check.SEED + 1
    images = draw_population(PhantomConfig(images=200, size=SIZE, floor=0.01, seed=seed))[:7]
    return torch.from_numpy(np.stack([draw_image(image, SIZE, seed) for image in images]))


def expected(project: Path, pixels: Tensor) -> Tensor:
    """Logits of the network that was exported."""
    network, info = load_network(project / "models")
    return network(normalised(pixels, info))


def export(kind: str, model: Path, out: Path) -> Path:
    assert main([kind, "--model", str(model), "-o", str(out)]) == 0
    return out


@pytest.mark.parametrize(
    ("kind", "model"),
    [("timm", model) for model in LINEAR]
    + [
        pytest.param(
            kind,
            model,
            # Exporting takes seconds: of these networks, the one whose head and channels are unusual is tested always.
            marks=(needs_onnx,) * (kind == "onnx") + (pytest.mark.long,) * (model is not OTHER_HEADS[0]),
        )
        for kind in ("onnx", "torch")
        for model in (LINEAR[3], *OTHER_HEADS)
    ],
)
def test_same_logits_for_any_number_of_images(
    kind: str, model: dict, project: Project, tmp_path: Path, pixels: Tensor
) -> None:
    folder = project(**model)
    opened = open_model(export(kind, folder, tmp_path / "out"))
    reference, network = expected(folder, pixels), load_network(folder / "models")[0]
    assert reference.std(dim=0).min() > 1e-2  # the images differ for the network
    images = normalised(pixels, opened.info)
    for number in (1, 2, 7):
        logits = opened.network(images[:number])
        assert logits.shape == (number, len(FINDINGS))
        assert (logits - reference[:number]).abs().max() <= check.TOLERANCE
        assert kind == "onnx" or torch.equal(logits, network(images[:number]))
    index = read_json(tmp_path / "out/export.json")
    assert index["check"]["largest_difference"] <= check.TOLERANCE


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_timm_alone_prepares_the_images_and_names_the_labels(
    channels: int, mode: str, project: Project, tmp_path: Path, pixels: Tensor
) -> None:
    folder = project(channels=channels)
    out = export("timm", folder, tmp_path / "out")
    timm = import_timm()
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    images = torch.stack([transform(Image.fromarray(image.numpy()).convert(mode)) for image in pixels])
    assert images.shape == (7, channels, SIZE, SIZE)
    assert (model(images) - expected(folder, pixels)).abs().max() <= 1e-5
    config = json.loads((out / "config.json").read_text())
    assert config["label_names"] == FINDINGS
    assert config["pretrained_cfg"]["mean"] == [122.937111 / 255] * channels
    assert config["pretrained_cfg"]["std"] == [56.010576 / 255] * channels
    assert not {"tag", "license", "origin_url", "url", "hf_hub_id"} & set(config["pretrained_cfg"])


@pytest.mark.parametrize(("fit", "mode"), [("stretch", "squash"), ("pad", "border"), ("crop", "center")])
def test_timm_makes_images_square_the_same_way(fit: str, mode: str, project: Project, tmp_path: Path) -> None:
    out = export("timm", project(fit=fit), tmp_path / "out")
    config = json.loads((out / "config.json").read_text())["pretrained_cfg"]
    assert (config["crop_mode"], config["crop_pct"]) == (mode, 1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_prediction_needs_goes_along_hashed(kind: str, project: Project, tmp_path: Path) -> None:
    folder = project(fit="pad")
    out = export(kind, folder, tmp_path / "out")
    index = json.loads((out / "export.json").read_text())
    assert index["findings"] == FINDINGS
    assert index["preprocessing"] == {
        "size": SIZE, "fit": "pad", "range": "own", "pixel_mean": 122.937111, "pixel_deviation": 56.010576,
    }  # fmt: skip
    present = {path.name for path in out.iterdir()}
    assert present == {"export.json", *index["files"]}
    assert {"README.md", "calibration.json", "model.json"} < present
    assert all(sha256(out / name) == digest for name, digest in index["files"].items())
    for name, source in (("model.json", "models"), ("calibration.json", "reports")):
        assert (out / name).read_bytes() == (folder / source / name).read_bytes()
    assert {oct(path.stat().st_mode) for path in out.iterdir()} == {oct((out / "README.md").stat().st_mode)}


@pytest.mark.parametrize(
    "kind",
    [
        "timm",
        pytest.param("onnx", marks=(needs_onnx, pytest.mark.long)),
        pytest.param("torch", marks=pytest.mark.long),
    ],
)
def test_same_bytes_without_a_path_of_this_machine(kind: str, project: Project, tmp_path: Path) -> None:
    """Of this process, which has made other exports before and has other threads, and of one of its own."""
    folder = project()
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        export(kind, folder, tmp_path / "one")
    finally:
        torch.set_num_threads(threads)
    command = [sys.executable, "-m", "ral.export", kind, "--model", str(folder), "-o", str(tmp_path / "two")]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    for path in (tmp_path / "one").iterdir():
        content = path.read_bytes()
        assert content == (tmp_path / "two" / path.name).read_bytes(), path.name
        for place in (str(ROOT), str(tmp_path), "site-packages", str(Path.home())):
            assert place.encode() not in content, (path.name, place)


@pytest.mark.parametrize("kind", KINDS)
def test_card_names_the_library_of_timm_only_and_its_code_runs(
    kind: str, project: Project, tmp_path: Path, pixels: Tensor
) -> None:
    folder = project()
    out = export(kind, folder, tmp_path / "out")
    card = ModelCard.load(out / "README.md")
    assert card.data.library_name == ("timm" if kind == "timm" else None)
    assert card.data.eval_results is not None
    assert card.data.eval_results[0].metric_value == 0.5
    assert "<b>" not in (out / "README.md").read_text().split("\n---\n")[0]
    assert "not a medical device" in card.text

    blocks = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert len(blocks) == 3
    picture = Image.fromarray(pixels[0].numpy())
    picture.save(tmp_path / "chest.png")
    place: dict[str, Any] = {"ids": ["a"], "image": picture}
    place["pixels"] = pixels[:1, None] if kind == "torch" else pixels[:1, None].numpy()
    for block in blocks:
        block = block.replace("FOLDER", str(out)).replace(
            '"chest.png", "scan.dcm"', f'"{tmp_path}/chest.png"'
        )
        exec(block, place)  # noqa: S102 - the code of the card
    logits = expected(folder, pixels[:1])
    assert np.abs(np.asarray(place["logits"]) - logits.numpy()).max() <= check.TOLERANCE
    probability = place["probabilities"]["Effusion"][0]
    assert probability == pytest.approx(float(torch.sigmoid(logits[0, 0])), abs=1e-4)
    assert place["decisions"]["Effusion"][0] == (probability >= 0.5)
    assert place["results"].loc[0, "Effusion_probability"] == pytest.approx(probability, abs=1e-4)
    assert pd.isna(place["probabilities"]["Hernia"][0])


def test_from_a_release_whose_hashes_are_checked(project: Project, tmp_path: Path, capsys: Any) -> None:
    folder = project()
    bundle = tmp_path / "v0.1.0"
    (bundle / "model").mkdir(parents=True)
    for name in ("model.json", "model.safetensors"):
        (folder / "models" / name).rename(bundle / "model" / name)
    (folder / "reports/model_card.md").rename(bundle / "model_card.md")
    params = {"preprocess": {"size": SIZE, "shard_images": 10, "fit": "crop", "range": "own"}}

    def describe() -> None:
        paths = [path for path in bundle.rglob("*") if path.is_file() and path.name != "bundle.json"]
        write_bundle(bundle, [path.relative_to(bundle).as_posix() for path in paths], params=params)

    describe()
    assert main(["timm", "--model", str(bundle), "-o", str(tmp_path / "out")]) == 1
    assert "released without its calibration" in capsys.readouterr().err
    (folder / "reports/calibration.json").rename(bundle / "calibration.json")
    describe()
    out = export("timm", bundle, tmp_path / "out")
    assert json.loads((out / "export.json").read_text())["preprocessing"]["fit"] == "crop"
    (bundle / "calibration.json").write_text("{}")
    assert main(["timm", "--model", str(bundle), "-o", str(tmp_path / "again")]) == 1
    assert "has changed since it was registered" in capsys.readouterr().err


def test_models_folder_of_a_project(project: Project, tmp_path: Path) -> None:
    export("timm", project() / "models", tmp_path / "out")


@pytest.mark.parametrize("model", OTHER_HEADS)
def test_timm_has_no_other_heads(model: dict, project: Project, tmp_path: Path, capsys: Any) -> None:
    assert main(["timm", "--model", str(project(**model)), "-o", str(tmp_path / "out")]) == 1
    assert "ral export onnx" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# Run in a project with the user's own network.
OWN_NETWORK = """
import sys
from pathlib import Path
from own_classes import NETWORK, write_classes
from simulated_release import write_bundle
from untrained import write_project
write_classes(Path())
from ral.export import main
from ral.files import read_json, write_json
from ral.user_code import files_in_use
path = write_project(Path("project"), backbone=NETWORK) / "models/model.json"
metadata = read_json(path)
metadata["network_code"] = files_in_use({"model": metadata["model"], "loss": {"name": ""}})["network"]
write_json(path, metadata)
sys.exit([main([kind, "--model", "project", "-o", kind]) for kind in ("timm", "torch")] != [1, 0])
"""


def test_an_export_of_the_users_own_network_needs_no_code(tmp_path: Path, pixels: Tensor) -> None:
    paths = os.pathsep.join(map(str, (tmp_path, ROOT, ROOT / "tests")))
    done = subprocess.run(
        [sys.executable, "-c", OWN_NETWORK],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "your own network, which timm does not have. Use ral export onnx, or torch" in done.stderr
    with pytest.raises(UserError, match="its code must be in this project"):
        open_model(tmp_path / "project")
    opened = open_model(tmp_path / "torch")
    assert opened.network(normalised(pixels, opened.info)).shape == (7, len(FINDINGS))


def test_errors_say_what_to_do_and_nothing_is_written(project: Project, tmp_path: Path, capsys: Any) -> None:
    folder, out = project(), tmp_path / "out"

    def error(model: Path, target: Path = out) -> str:
        assert main(["timm", "--model", str(model), "-o", str(target)]) == 1
        assert not out.exists()
        return capsys.readouterr().err

    assert "exists and is not an empty folder" in error(folder, folder)
    assert re.search(r"There is no model .*v9\.0\.0", error(tmp_path / "v9.0.0"))
    assert "model.json does not exist" in error(tmp_path)
    params = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(params.replace(f"  size: {SIZE}", "  size: 128"))
    assert "images of 128 pixels in its parameters, of 64 in model.json" in error(folder)
    (folder / "params.yaml").write_text(params)
    (folder / "reports/model_card.md").write_text("---\na: [\n---\n")
    assert "front matter" in error(folder)
    (folder / "reports/model_card.md").unlink()
    assert "model_card.md does not exist" in error(folder)
    (folder / "reports/calibration.json").unlink()
    assert re.search(r"calibration\.json does not exist.*dvc repro", error(folder))
    (folder / "params.yaml").unlink()
    assert "does not say how images are prepared" in error(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_changed_export_is_refused(kind: str, project: Project, tmp_path: Path) -> None:
    out = export(kind, project(), tmp_path / "out")
    for path in out.iterdir():
        if path.name == "export.json":
            continue
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(UserError, match=rf"{path.name} is missing or has changed"):
            open_model(out)
        path.write_bytes(content)
    index = read_json(out / "export.json")
    model = MODEL_FILES[kind]  # type: ignore[index]
    for change, message in (
        ({"kind": "pickle"}, "of another version"),
        ({"files": {k: v for k, v in index["files"].items() if k != model}}, f"does not list {model}"),
        ({"files": None}, "is damaged"),
        ({"preprocessing": None}, "is damaged"),
        ({"preprocessing": {"size": "large"}}, "is damaged"),
    ):
        write_json(out / "export.json", index | change)
        with pytest.raises(UserError, match=message):
            open_model(out)
    write_json(out / "export.json", index)
    beside = out / f"{model}.data"
    beside.write_bytes(b"weights")
    with pytest.raises(UserError, match=rf"{beside.name} is not listed"):
        open_model(out)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_file_that_is_none_is_refused(kind: str, project: Project, tmp_path: Path) -> None:
    """Its hash is right, as in an export that was written from a damaged file."""
    out = export(kind, project(), tmp_path / "out")
    path = out / MODEL_FILES[kind]  # type: ignore[index]
    path.write_bytes(path.read_bytes()[:1000])
    index = read_json(out / "export.json")
    index["files"][path.name] = sha256(path)
    write_json(out / "export.json", index)
    with pytest.raises(UserError, match=rf"{path.name} is (damaged|not a valid safetensors file)"):
        open_model(out)


def test_an_export_is_not_exported_again(project: Project, tmp_path: Path, capsys: Any) -> None:
    out = export("timm", project(), tmp_path / "out")
    assert main(["torch", "--model", str(out), "-o", str(tmp_path / "again")]) == 1
    assert "Export the model that it was made from" in capsys.readouterr().err


def test_export_that_differs_is_refused(project: Project) -> None:
    network, info = load_network(project() / "models")
    images = normalised(check.phantom_images(SIZE), info)
    assert check.largest_difference(network, lambda part: network(part) + 5e-5, images) > 4e-5
    for wrong in (
        lambda part: network(part) + 2e-4,
        lambda part: network(part) * torch.nan,
        # Right for one number of images only, as after an export with a fixed batch size.
        lambda part: network(part) + (len(part) == 1),
    ):
        with pytest.raises(Exception, match="differ from the network's"):
            check.largest_difference(network, wrong, images)


@needs_onnx
def test_weights_beside_a_large_onnx_model(
    project: Project, tmp_path: Path, pixels: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ral.export.onnx_model._ONE_PIECE", 0)
    folder = project()
    out = export("onnx", folder, tmp_path / "out")
    assert (out / "model.onnx.data").stat().st_size > (out / "model.onnx").stat().st_size
    opened = open_model(out)
    logits = opened.network(normalised(pixels, opened.info))
    assert (logits - expected(folder, pixels)).abs().max() <= check.TOLERANCE
    (out / "model.onnx.data").unlink()
    with pytest.raises(UserError, match=r"model\.onnx\.data is missing"):
        open_model(out)


def test_without_the_extra(
    project: Project, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ral.inference.exported.find_spec", lambda name: None)
    assert main(["onnx", "--model", str(project()), "-o", str(tmp_path / "out")]) == 1
    assert "pip install 'ral[onnx]'" in capsys.readouterr().err


def test_help_does_not_load_torch() -> None:
    code = "import sys, ral.export; ral.export.parser().format_help(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": ""})
