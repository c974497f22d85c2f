"""An exported folder predicts as the model that it was made from, in Python and from the command line."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ral.errors import UserError
from ral.export.write import export
from ral.inference.export_folder import KINDS
from ral.inference.model import Model, load_model
from ral.inference.predict import main

needs_onnx = pytest.mark.skipif(find_spec("onnxscript") is None, reason="needs the extra onnx")
EACH = [pytest.param(kind, marks=needs_onnx) if kind == "onnx" else kind for kind in KINDS]


@pytest.fixture(scope="session")
def exports(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `project` in each format, in a folder of that name."""
    folder = tmp_path_factory.mktemp("exports")
    for kind in KINDS:
        if kind != "onnx" or find_spec("onnxscript"):
            export(kind, project, folder / kind)
    return folder


@pytest.mark.parametrize("kind", EACH)
def test_same_probabilities_and_decisions(kind: str, exports: Path, folder: Path, model: Model) -> None:
    exported = load_model(exports / kind)
    assert exported.name.startswith(f"{kind}@")
    assert (exported.findings, exported.notice) == (model.findings, model.notice)
    assert exported.thresholds.equals(model.thresholds)
    mine, theirs = exported.predict(folder), model.predict(folder)
    assert mine[["image", "error", "warning"]].equals(theirs[["image", "error", "warning"]])
    kinds = {name: [f"{finding}_{name}" for finding in model.findings] for name in ("logit", "probability")}
    if kind == "onnx":
        np.testing.assert_allclose(mine[kinds["logit"]], theirs[kinds["logit"]], rtol=0, atol=1e-4)
        np.testing.assert_allclose(
            mine[kinds["probability"]], theirs[kinds["probability"]], rtol=0, atol=1e-4
        )
        # A decision may differ only where the probability is the threshold, up to rounding.
        near = (theirs[kinds["probability"]] - model.thresholds.to_numpy()).abs().to_numpy() <= 1e-4
        assert near.mean() < 0.5
    else:
        for columns in kinds.values():
            assert mine[columns].equals(theirs[columns])
        near = np.zeros((len(mine), len(model.findings)), bool)
    decisions = [f"{finding}_decision" for finding in model.findings]
    assert theirs[decisions].notna().any(axis=None)
    assert mine[decisions].mask(near).equals(theirs[decisions].mask(near))


@pytest.mark.parametrize("kind", EACH)
def test_an_image_has_the_same_bits_alone_and_in_a_batch(kind: str, exports: Path, folder: Path) -> None:
    exported, paths = load_model(exports / kind), sorted(folder.iterdir())[:20]
    together = exported.predict(paths).set_index("image")
    for path in (paths[3], paths[19]):
        assert exported.predict(path).set_index("image").equals(together.loc[[str(path)]])


def _heat(model: Model, path: Path) -> object:
    """The heat map of a finding, or why there is none."""
    try:
        return model.explain(path, model.findings[2])
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("kind", EACH)
def test_heat_maps_and_devices(kind: str, exports: Path, folder: Path, model: Model) -> None:
    exported, path = load_model(exports / kind), min(folder.iterdir())
    if kind == "timm":
        np.testing.assert_array_equal(_heat(exported, path), _heat(model, path))
        return
    with pytest.raises(UserError, match=r"An export to ONNX or torch\.export has no heat maps"):
        exported.explain(path, model.findings[2])
    with pytest.raises(UserError, match="--device cuda"):
        load_model(exports / kind, "cuda")


@pytest.mark.parametrize("kind", EACH)
def test_the_command_writes_results_and_a_page(
    kind: str, exports: Path, folder: Path, model: Model, tmp_path: Path
) -> None:
    paths = [str(path) for path in sorted(folder.iterdir())[:3]]
    out, page = tmp_path / "out.parquet", tmp_path / "page.html"
    assert main([*paths, "--model", str(exports / kind), "-o", str(out), "--report", str(page)]) == 0
    expected = load_model(exports / kind).predict(paths)
    columns = [f"{finding}_probability" for finding in model.findings]
    pd.testing.assert_frame_equal(
        pd.read_parquet(out)[columns].astype("float64"), expected[columns], check_exact=True
    )
    assert ("An export to ONNX" in page.read_text()) == (kind != "timm")


def test_the_mean_of_a_model_and_its_export(project: Path, exports: Path, folder: Path) -> None:
    from ral.inference.predict import open_predictor

    path = min(folder.iterdir())
    both = Model(open_predictor([project, exports / "torch"])).predict(path)
    alone = load_model(project).predict(path)
    columns = [name for name in alone if name.endswith("_probability")]
    np.testing.assert_allclose(both[columns], alone[columns], rtol=1e-9)
