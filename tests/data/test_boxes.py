"""Boxes: both layouts, where a box is on the prepared image, and what is wrong with a table."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ral.compute.dask_pool import open_pool
from ral.config.dask import DaskTarget
from ral.config.data import BoxesConfig, DataConfig, PreprocessConfig, PreprocessParams, SplitConfig
from ral.data.boxes import image_sizes, map_boxes, read_boxes
from ral.data.dataset_info import DatasetInfo
from ral.data.images.decode import extent
from ral.data.images.locate import list_images
from ral.data.images.resize import placement, to_square
from ral.data.prepare import prepare
from ral.data.sources.base import open_source
from ral.errors import UserError
from ral.labels import NIH_FINDINGS

NIH = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
VINDR = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"
BOXES = ["x_min", "y_min", "x_max", "y_max"]


def read(root: Path, text: str, source: str = "nih", findings: tuple[str, ...] = NIH_FINDINGS, **data):
    (root / "boxes.csv").write_text(text)
    defaults = {"source": source, "root": str(root), "missing_images": "drop", "views": ["PA", "AP"]}
    boxes = BoxesConfig(files=["boxes.csv"])
    return read_boxes(open_source(DataConfig(**(defaults | {"boxes": boxes} | data))), findings)


def test_nih_layout_as_published(tmp_path: Path) -> None:
    table = read(
        tmp_path,
        NIH
        + "00013118_008.png,Atelectasis,225.084745762712,547.019216763771,86.7796610169491,79.1864406779661,,,\n"
        + "00014716_007.png,Infiltrate,10,20,30.5,40,,,\n",
    )
    assert table["finding"].tolist() == ["Atelectasis", "Infiltration"]
    assert table["image_id"].tolist() == ["00013118_008.png", "00014716_007.png"]
    assert table[BOXES].iloc[1].tolist() == [10, 20, 40.5, 60]
    assert table[BOXES].iloc[0].tolist() == pytest.approx([225.0847, 547.0192, 311.8644, 626.2057], abs=1e-4)
    assert (table["votes"] == 1).all()


def test_vindr_layout_has_a_vote_per_reader(tmp_path: Path) -> None:
    text = (
        VINDR
        + "a,Pleural effusion,10,R8,1,2,3,4\n"
        + "a,Pleural effusion,10,R9,1,2,3,5\n"
        + "a,No finding,14,R10,,,,\n"
        + "b,Nodule/Mass,8,R9,5,5,9.5,9\n"
        + "b,Cardiomegaly,3,R9,1,1,9,9\n"
    )
    findings = ("Effusion", "Nodule/Mass")
    table = read(tmp_path, text, "vindr", findings)
    assert table["finding"].tolist() == ["Effusion", "Effusion", "Nodule/Mass"]  # no Cardiomegaly
    assert table["reader"].tolist() == ["R8", "R9", "R9"]
    assert table["votes"].tolist() == [2, 2, 1]  # more than half of three readers, of one
    assert table["row"].tolist() == [2, 3, 5]
    assert read(tmp_path, text, "vindr", findings, readers="any")["votes"].tolist() == [1, 1, 1]


def test_vindr_consensus_without_readers(tmp_path: Path) -> None:
    table = read(
        tmp_path,
        "image_id,class_name,x_min,y_min,x_max,y_max\na,Lung Opacity,1,2,3,4\n",
        "vindr",
        ("Lung Opacity",),
    )
    assert (table["votes"].tolist(), table["reader"].tolist()) == ([1], [""])


def test_no_boxes_by_default(tmp_path: Path) -> None:
    config = DataConfig(source="nih", root=str(tmp_path), missing_images="drop", views=["PA"])
    assert config.boxes is None
    assert read_boxes(open_source(config), NIH_FINDINGS) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (NIH + "a.png,Mass,1,1,2,2,,,\nb.png,Mas,1,1,2,2,,,\n", ["row 3", "`Mas`", "Did you mean `Mass`"]),
        (NIH + "a.png,Mass,1,one,2,2,,,\n", ["row 2", "`y`", "`one`", "number"]),
        (NIH + "a.png,Mass,1,1,inf,2,,,\n", ["row 2", "`w`"]),
        (NIH + "a.png,Mass,1,1,0,2,,,\n", ["row 2", "a.png", "empty", "0 x 2"]),
        (NIH + "a.png,Mass,1,1\n", ["row 2", "truncated"]),
        (NIH, ["no rows"]),
        (VINDR + "a,Cardiomegaly,3,R9,1,1,,9\n", ["row 2", "`x_max`"]),
        (VINDR + "a,Cardiomegaly,3,R9,5,1,5,9\n", ["row 2", "empty"]),
        ("image_id,finding\na,Mass\n", ["layouts", "Bbox [x,y,w,h]", "x_min"]),
        ("Image Index,Finding,Bbox [x,y,w,h]\na,Mass,1,2,3,4\n", ["Finding Label"]),
    ],
)
def test_a_wrong_table_is_explained(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        read(tmp_path, text)
    for word in [*words, "boxes.csv"]:
        assert word in str(raised.value), str(raised.value)


def test_a_missing_table_is_explained(tmp_path: Path) -> None:
    boxes = BoxesConfig(files=["BBox_List_2017.csv"])
    config = DataConfig(source="nih", root=str(tmp_path), missing_images="drop", views=["PA"], boxes=boxes)
    with pytest.raises(UserError, match=r"BBox_List_2017.csv \(data.boxes\) does not exist"):
        read_boxes(open_source(config), NIH_FINDINGS)
    with pytest.raises(ValueError, match="relative"):
        BoxesConfig(files=["../BBox_List_2017.csv"])


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
@pytest.mark.parametrize(("height", "width"), [(120, 90), (90, 120), (64, 64)])
def test_a_box_goes_where_its_pixels_go(fit: str, height: int, width: int) -> None:
    """A white rectangle, prepared as an image, is where its box is mapped to."""
    left, top, right, bottom = 30, 42, 60, 66
    image = np.zeros((height, width), np.uint8)
    image[top : min(bottom, height), left:right] = 255
    square = to_square(image, 0, 255, 48, fit)  # type: ignore[arg-type]
    scale_x, scale_y, x, y = placement(height, width, 48, fit)  # type: ignore[arg-type]
    rows, columns = np.flatnonzero(square.any(axis=1)), np.flatnonzero(square.any(axis=0))
    bottom = min(bottom, height)
    assert columns[0] == int(left * scale_x + x)
    assert columns[-1] + 1 == int(np.ceil(round(right * scale_x + x, 9)))
    assert rows[0] == int(top * scale_y + y)
    assert rows[-1] + 1 == int(np.ceil(round(min(bottom * scale_y + y, 48), 9)))


def table_of(*rows: tuple[str, str, float, float, float, float]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["image_id", "finding", *BOXES])
    return table.assign(reader="", votes=1, file="boxes.csv", row=range(2, 2 + len(table)))


def test_boxes_of_other_images_are_counted_and_cut_ones_too() -> None:
    table = table_of(
        ("a", "Mass", 0, 0, 1000, 500), ("b", "Mass", 1, 1, 2, 2), ("a", "Nodule", 1800, 5, 1990, 50)
    )
    images = pd.DataFrame({"image_id": ["a", "c"]})
    sizes = np.array([[2000, 1000], [0, 0], [2000, 1000]])
    boxes, counts = map_boxes(table, images, sizes, 64, "stretch")
    assert boxes[BOXES].to_numpy().tolist() == [[0, 0, 32, 32], [57.6, 0.32, 63.68, 3.2]]
    assert counts.to_json() == {"boxes": 2, "images": 1, "no_image": 1, "cut_off": 0}
    boxes, counts = map_boxes(table, images, sizes, 64, "crop")
    assert boxes[BOXES].to_numpy().tolist() == [[0, 0, 32, 32]]  # of the middle 1000 pixels, the left half
    assert counts.cut_off == 1


def test_a_box_of_a_larger_image_is_refused() -> None:
    images = pd.DataFrame({"image_id": ["a"]})
    with pytest.raises(
        UserError, match=r"boxes.csv, row 2: .* reaches from 500 to 900 along x, .*data.boxes.side"
    ):
        map_boxes(table_of(("a", "Mass", 500, 5, 900, 9)), images, np.array([[224, 224]]), 64, "stretch")
    rounding = table_of(("a", "Mass", -0.5, 5, 225, 9))
    boxes, _ = map_boxes(rounding, images, np.array([[224, 224]]), 224, "stretch")
    assert boxes[["x_min", "x_max"]].to_numpy().tolist() == [[0, 224]]


def test_boxes_of_no_image_in_use_are_refused() -> None:
    images = pd.DataFrame({"image_id": ["a.png"]})
    with pytest.raises(UserError, match=r"no box is of an image .*such as `b`.*`a.png`"):
        map_boxes(table_of(("b", "Mass", 1, 1, 2, 2)), images, np.zeros((1, 2), int), 64, "stretch")


def test_the_size_of_an_image_is_read_without_its_pixels(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("L", (40, 20)).save(tmp_path / "images/a.png")
    turned = Image.new("L", (40, 20))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "images/b.jpg", exif=exif)
    images, _ = list_images(tmp_path, lambda _: None)
    with open_pool(DaskTarget(workers=2)) as pool:
        assert image_sizes(tmp_path, images, pool).tolist() == [[40, 20], [20, 40]]
    cut = (tmp_path / "images/a.png").read_bytes()[:60]
    assert extent(cut, "a.png") == (40, 20)
    with pytest.raises(UserError, match="is not an image"):
        extent(b"text", "a.png")


def run(root: Path, out: Path, **data) -> pd.DataFrame:
    out.mkdir()
    images, _ = list_images(root, lambda _: None)
    defaults = {"source": "nih", "root": str(root), "missing_images": "drop", "views": ["PA", "AP"]}
    params = PreprocessParams(
        data=DataConfig(**(defaults | data)),
        split=SplitConfig(method="hash", val=0.2, test=0.2, seed=0),
        preprocess=PreprocessConfig(size=32, shard_images=500),
    )
    prepare(params, images, out, DaskTarget(workers=2), lambda _: None)
    return pd.read_parquet(out / "boxes.parquet") if (out / "boxes.parquet").exists() else pd.DataFrame()


def test_preprocess_packs_the_boxes_of_its_images(small_phantom: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(small_phantom, root)
    boxes = run(root, tmp_path / "out", boxes=BoxesConfig(files=["BBox_List_2017.csv"]))
    raw = pd.read_csv(root / "BBox_List_2017.csv")
    assert len(boxes) == len(raw) > 100
    assert boxes[BOXES].to_numpy().min() >= 0
    assert boxes[BOXES].to_numpy().max() <= 32
    info = DatasetInfo.read(tmp_path / "out/dataset.json")
    assert info.boxes is not None
    assert (info.boxes.boxes, info.boxes.no_image) == (len(raw), 0)
    studies = pd.read_parquet(tmp_path / "out/studies.parquet").set_index("image_id")
    assert all(
        studies.loc[image, finding] == 1
        for image, finding in zip(boxes["image_id"], boxes["finding"], strict=True)
    )
    # The side that is given is that of the files: the same boxes, and no image is read for its size.
    side = Image.open(next(iter(unpacked(root)))).width
    given = run(root, tmp_path / "given", boxes=BoxesConfig(files=["BBox_List_2017.csv"], side=side))
    pd.testing.assert_frame_equal(given, boxes)
    # All else is as without boxes.
    run(root, tmp_path / "none")
    for name in ("studies.parquet", "split.parquet", "class_counts.json"):
        assert (tmp_path / "none" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert "boxes" not in (tmp_path / "none/dataset.json").read_text()
    assert not (tmp_path / "none/boxes.parquet").exists()


def unpacked(root: Path) -> list[Path]:
    shutil.unpack_archive(root / "images_001.tar.gz", root.parent / "unpacked")
    return sorted((root.parent / "unpacked/images").iterdir())


def test_boxes_have_pseudonyms_too(small_phantom: Path, tmp_path: Path) -> None:
    (tmp_path / "salt").write_bytes(b"0123456789abcdef")
    boxes = run(
        small_phantom,
        tmp_path / "out",
        boxes=BoxesConfig(files=["BBox_List_2017.csv"]),
        pseudonymise=str(tmp_path / "salt"),
    )
    studies = pd.read_parquet(tmp_path / "out/studies.parquet")
    assert set(boxes["image_id"]) <= set(studies["image_id"])
    assert not boxes["image_id"].str.contains("_").any()


def test_a_finding_that_is_not_used_has_no_box(small_phantom: Path, tmp_path: Path) -> None:
    boxes = run(
        small_phantom,
        tmp_path / "out",
        boxes=BoxesConfig(files=["BBox_List_2017.csv"]),
        findings=["Mass", "Nodule"],
    )
    assert set(boxes["finding"]) == {"Mass", "Nodule"}
