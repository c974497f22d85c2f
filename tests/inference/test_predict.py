"""The command: every kind of input, bad images, a kill and --resume, all formats."""

import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from forks import forks
from PIL import Image
from tars import write_tar

from ral.inference.model import Model
from ral.inference.predict import SOME_BAD, main

COMMAND = [sys.executable, "-m", "ral.inference.predict"]
Wait = Callable[[Callable[[], object]], None]


def read(path: Path) -> pd.DataFrame:
    """Results with nullable types, whatever the format."""
    if path.suffix == ".parquet":
        return pd.read_parquet(path, dtype_backend="numpy_nullable")
    if path.suffix == ".jsonl":
        return pd.DataFrame(map(json.loads, path.read_text().splitlines())).convert_dtypes()
    return pd.read_csv(path, dtype_backend="numpy_nullable")


def same(one: pd.DataFrame, two: pd.DataFrame) -> None:
    """Results are equal; logits as float32."""
    logits = [name for name in one if name.endswith("_logit")]
    types = dict.fromkeys(logits, "float32")
    pd.testing.assert_frame_equal(one.astype(types), two.astype(types), check_dtype=False, check_exact=True)


@pytest.fixture(scope="module")
def expected(project: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the folder in each format."""
    out = tmp_path_factory.mktemp("expected")
    for ending in ("csv", "parquet", "jsonl"):
        assert main([str(folder), "--model", str(project), "-o", str(out / f"all.{ending}")]) == 0
    return out


def test_formats_have_the_same_content(expected: Path, folder: Path, model: Model) -> None:
    tables = [read(expected / f"all.{ending}") for ending in ("csv", "parquet", "jsonl")]
    assert tables[0]["image"].tolist() == sorted(path.name for path in folder.iterdir())
    assert tables[0]["notice"].str.contains("PHANTOM").all()
    assert tables[0]["notice"].str.contains("not a medical device").all()
    same(tables[0], tables[1])
    same(tables[0], tables[2])
    table = model.predict(folder)
    for name in model.findings:
        column = f"{name}_probability"
        np.testing.assert_array_equal(tables[1][column].astype("float64"), table[column])
    assert not list(expected.glob("*.partial"))


@pytest.mark.parametrize(
    "kind", ["tar", "tar.gz", "zip", "stdin tar", "stdin tar.gz", "stdin paths", "files"]
)
def test_every_input_gives_the_same_results(
    kind: str, project: Path, folder: Path, expected: Path, tmp_path: Path
) -> None:
    out, content = tmp_path / "out.csv", b""
    files = sorted(folder.iterdir())
    archive = tmp_path / f"images.{kind.split()[-1]}"
    if kind.endswith("tar"):
        write_tar(archive, folder)
    elif kind.endswith("tar.gz"):
        write_tar(archive, folder, "w:gz")
    elif kind == "zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for path in files:
                packed.write(path, path.name)
    if kind.startswith("stdin"):
        inputs = ["-"]
        content = archive.read_bytes() if "tar" in kind else "\n".join(map(str, files)).encode()
    else:
        inputs = list(map(str, files)) if kind == "files" else [str(archive)]
    arguments = [*inputs, "--model", str(project), "-o", str(out)]
    if kind.startswith("stdin"):
        assert (
            subprocess.run(
                [*forks().command("ral.inference.predict"), *arguments], input=content, cwd=ROOT
            ).returncode
            == 0
        )
    else:
        assert main(arguments) == 0
    results = read(out)
    results["image"] = results["image"].map(lambda name: Path(name).name)
    same(results, read(expected / "all.csv"))


def test_prepared_set(project: Path, expected: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    assert main([str(project / "data/prepared"), "--model", str(project), "-o", str(out)]) == 0
    prepared = read(out).sort_values("image", ignore_index=True)
    assert set(prepared["view"]) == {"PA", "AP"}
    same(prepared.drop(columns="view"), read(expected / "all.parquet").drop(columns="view"))


def test_bad_images_are_rows_with_their_reason(
    project: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    good = min(folder.iterdir()).read_bytes()
    (images / "a.png").write_bytes(good)
    (images / "b.png").write_bytes(good[:500])
    (images / "c.jpg").write_text("text")
    blank = io.BytesIO()
    Image.new("L", (64, 64), 7).save(blank, "PNG")
    (images / "d.png").write_bytes(blank.getvalue())
    (images / "e.png").symlink_to("nowhere")
    (images / "f\n.png").write_bytes(good)
    (images / "notes.txt").write_text("no image")
    (images / ".hidden.png").write_bytes(good)
    out = tmp_path / "out.csv"
    assert main([str(images), "--model", str(project), "-o", str(out)]) == SOME_BAD
    printed = capsys.readouterr()
    assert "PHANTOM" in printed.out
    assert "not a medical device" in printed.out
    assert "4 of them" in printed.err
    table = read(out).set_index("image")
    assert table.index.tolist() == ["a.png", "b.png", "c.jpg", "d.png", "e.png", r"f\n.png"]
    assert table["error"].isna().tolist() == [True, False, False, False, False, True]
    assert [table.loc[name, "error"].split(" (")[0] for name in ("b.png", "c.jpg", "d.png", "e.png")] == [
        "cannot be decoded", "is not an image", "is blank", "cannot be read",
    ]  # fmt: skip
    numbers = [name for name in table if name.endswith(("_probability", "_decision", "_logit"))]
    assert table.loc["b.png":"e.png", numbers].isna().all(axis=None)
    assert table.loc["a.png", numbers].equals(table.loc[r"f\n.png", numbers])


def test_a_folder_as_a_pacs_exports_it(project: Path, tmp_path: Path) -> None:
    from dicom_files import dicom

    export = tmp_path / "export"
    series = export / "DICOM/PA000001/ST000001"
    series.mkdir(parents=True)
    values = np.random.default_rng(0).integers(0, 4096, (64, 64), dtype=np.uint16)
    (export / "DICOMDIR").write_bytes(dicom(None))
    (export / "README").write_text("a viewer")
    (export / "viewer.exe").write_bytes(b"MZ")
    (series / "IM000001").write_bytes(dicom(values, ViewPosition="PA"))
    (series / "IM000002").write_bytes(dicom(values, ViewPosition="LL"))
    (series / "1.2.840.113619.2").write_bytes(dicom(values))
    (series / "SR000001").write_bytes(dicom(None))
    out = tmp_path / "out.csv"
    assert main([str(export), "--model", str(project), "-o", str(out)]) == SOME_BAD
    table = read(out)
    below = "DICOM/PA000001/ST000001/"
    assert table["image"].tolist() == [
        f"{below}{name}" for name in ("1.2.840.113619.2", "IM000001", "IM000002", "SR000001")
    ]
    assert table["view"].fillna("").tolist() == ["", "PA", "LATERAL", ""]
    assert "view LATERAL" in table.loc[2, "warning"]
    assert "view" not in table["warning"].fillna("")[1]
    assert table["error"].fillna("").tolist() == [
        "",
        "",
        "",
        "is a DICOM file without pixels (or it is cut short)",
    ]
    assert "PLANTED" not in out.read_text()
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as packed:
        for path in sorted(export.rglob("*")):
            packed.write(path, path.relative_to(export))
    zipped = tmp_path / "zipped.csv"
    assert main([str(tmp_path / "export.zip"), "--model", str(project), "-o", str(zipped)]) == SOME_BAD
    same(read(zipped).sort_values("image", ignore_index=True), table)


@pytest.mark.parametrize(
    "ending", ["csv", *(pytest.param(one, marks=pytest.mark.long) for one in ("parquet", "jsonl"))]
)
def test_a_kill_and_resume_write_each_image_once(
    ending: str, project: Path, folder: Path, expected: Path, tmp_path: Path, wait_until: Wait
) -> None:
    """The process waits for more paths when it is killed, so it is killed in the middle however fast it is; it has
    written the first FLUSH_ROWS images by then.
    """
    out = tmp_path / f"out.{ending}"
    partial = out.with_name(out.name + ".partial")
    names = sorted(path.name for path in folder.iterdir())
    command = [*COMMAND, "-", "--model", str(project), "-o", str(out), "--workers", "1"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=folder, env=environment)
    assert process.stdin is not None
    process.stdin.write("\n".join(names).encode() + b"\n")
    process.stdin.flush()
    wait_until(lambda: partial.exists() and partial.stat().st_size > 10_000)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    with partial.open("r+b") as stream:  # as if killed in the middle of a write
        stream.truncate(partial.stat().st_size - 20)

    arguments = [str(folder), "--model", str(project), "-o", str(out)]
    before = partial.read_bytes()
    assert main(arguments) == 1  # refused without --resume
    assert partial.read_bytes() == before
    assert main([*arguments, "--resume"]) == 0
    assert read(out)["image"].tolist() == names
    same(read(out), read(expected / f"all.{ending}"))
    assert not partial.exists()
    finished = out.read_bytes()
    if ending != "parquet":
        assert finished == (expected / f"all.{ending}").read_bytes()
    assert main([*arguments, "--resume"]) == 0  # there is nothing to do
    assert out.read_bytes() == finished


def test_resume_refuses_results_of_another_model(
    project: Path, folder: Path, expected: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for ending in ("csv", "jsonl"):
        partial = tmp_path / f"out.{ending}.partial"
        partial.write_bytes((expected / f"all.{ending}").read_bytes()[:60_000])
        arguments = [str(folder), "--model", str(project), "-o", str(tmp_path / f"out.{ending}"), "--resume"]
        assert main([*arguments, "--tta", "flip"]) == 1
        assert ", flip. Choose another output" in capsys.readouterr().err
    partial = tmp_path / "out.csv.partial"
    partial.write_text("a,b\n")
    assert main([str(folder), "--model", str(project), "-o", str(tmp_path / "out.csv"), "--resume"]) == 1
    assert "other columns" in capsys.readouterr().err


def test_same_order_gives_the_same_bytes(project: Path, folder: Path, expected: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.csv"
    assert main([str(folder), "--model", str(project), "-o", str(out), "--workers", "3"]) == 0
    assert out.read_bytes() == (expected / "all.csv").read_bytes()


def test_a_damaged_archive_keeps_what_was_predicted(
    project: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = write_tar(tmp_path / "images.tar", folder)
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    out = tmp_path / "out.csv"
    assert main([str(archive), "--model", str(project), "-o", str(out)]) == 1
    assert "truncated or damaged" in capsys.readouterr().err
    assert not out.exists()
    assert (tmp_path / "out.csv.partial").exists()
    archive.write_bytes(content)
    assert main([str(archive), "--model", str(project), "-o", str(out), "--resume"]) == 0
    assert read(out)["image"].tolist() == sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere does not exist"),
        (["{empty}"], "No image in"),
        (["{folder}", "-o", "out.txt"], "written as .csv, .parquet, .jsonl"),
        (["{folder}", "--model", "v9.9.9"], "no v9.9.9 in the registry"),
        (["{folder}", "--device", "gpu"], "--device gpu"),
        (["{folder}", "--workers", "0"], "--workers must be at least 1"),
    ],
)
def test_wrong_use_is_explained(
    arguments: list[str], message: str, project: Path, folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("RAL_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "empty").mkdir()
    given = [text.format(folder=folder, empty=tmp_path / "empty") for text in arguments]
    defaults = [] if "--model" in given else ["--model", str(project)]
    defaults += [] if "-o" in given else ["-o", str(tmp_path / "out.csv")]
    assert main([*given, *defaults]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("*.partial"))


def test_a_dicomdir_is_no_image(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "DICOMDIR").write_bytes(b"index")
    command = [str(tmp_path / "DICOMDIR"), "--model", str(project), "-o", str(tmp_path / "out.csv")]
    assert main(command) == 1
    assert f"Name its folder: ral predict {tmp_path}" in capsys.readouterr().err
    assert not (tmp_path / "out.csv").exists()


def test_report_is_one_page_with_everything(
    project: Path, folder: Path, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in sorted(folder.iterdir())[:18]:  # more than a pass
        (images / path.name).write_bytes(path.read_bytes())
    (images / "<script>.png").write_text("no image")
    arguments = [str(images), "--model", str(project), "-o", str(tmp_path / "out.csv"), "--report"]
    assert main([*arguments, str(tmp_path / "page.html")]) == SOME_BAD
    page = (tmp_path / "page.html").read_text()
    assert "PHANTOM MODEL" in page
    assert "not a medical device" in page
    assert "http:" not in page and "https:" not in page and "<script>.png" not in page  # noqa: PT018
    assert page.count("<tr><td>") == 19
    assert page.count("data:image/jpeg") == 36  # each with its heat map
    table = read(tmp_path / "out.csv").set_index("image")
    name = sorted(folder.iterdir())[0].name
    row = next(line for line in page.splitlines() if f'<td class="name">{name}</td>' in line)
    decided = table.loc[name, [f"{finding}_decision" for finding in model.findings]].fillna(False)
    assert row.count("number positive") == decided.astype(bool).sum()
    positive = [finding for finding in model.findings if decided[f"{finding}_decision"]]
    assert f'<td data-sort="{len(positive)}">{", ".join(positive)}</td>' in row
    with_stdin = ["-", *arguments[1:], str(tmp_path / "page.html")]
    assert main(with_stdin) == 1
    assert "second time" in capsys.readouterr().err


def test_help_loads_no_torch() -> None:
    code = (
        "import sys\nfrom ral.inference.predict import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\nassert not {'torch', 'pandas'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert "not a medical device" in done.stdout
