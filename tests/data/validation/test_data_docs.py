"""Data Docs show text of a table as text, run nothing, load nothing and lead to what failed."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from ral.config.data import DataConfig, ValidateParams
from ral.config.environment import Environment
from ral.errors import UserError
from tasks.validate import run

IMAGE = "<img src=x onerror=\"document.title='owned'\">"
SCRIPT = "<script>document.title='owned'</script>"
ODD = "$x ${y} {{ 7 * 7 }} `z` &lt;b&gt; \x1b[31m \ue000"
COLUMN = "<img src=y onerror=\"document.title='owned'\">"


def write_table(folder: Path) -> DataConfig:
    """An own table whose cells, ids, column and finding are markup, and one image file."""
    finding = f"finding {SCRIPT}"
    cells = {
        "image_id": [f"a{SCRIPT}", "b", ODD, IMAGE],
        "patient_id": ["1", "2", IMAGE, "4"],
        "found": [IMAGE, SCRIPT, ODD, "1"],
        COLUMN: [IMAGE, SCRIPT, ODD, "M"],
    }
    pd.DataFrame(cells).to_csv(folder / "t.csv", index=False)
    (folder / "images").mkdir()
    Image.new("L", (8, 8)).save(folder / "images/b.png")
    table = {"file": "t.csv", "sex": COLUMN, "findings": {finding: "found"}}
    return DataConfig(source="table", root=str(folder), missing_images="drop", table=table, views=["FRONTAL"])


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What validate says of such a table, and its Data Docs."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "images").mkdir()
    data = write_table(folder / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        with pytest.raises(UserError) as error:
            run(ValidateParams(data=data), Environment(state_dir=folder / "state"), Path("out"), Path("none"))
    (docs,) = folder.glob("runs/*/data_docs")
    return str(error.value), docs


class Page(HTMLParser):
    """Tags with their attributes, and text, as a browser sees them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_text_of_a_table_is_text_in_data_docs(refused: tuple[str, Path]) -> None:
    page = Page(refused[1] / "raw_label_table.html")
    assert {tag for tag, _ in page.tags}.isdisjoint(
        {"script", "img", "b", "link", "iframe", "object", "embed"}
    )
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    whole, by_column = page.text, page.text.partition("values must belong to this set")[2]
    for text in (IMAGE, SCRIPT, ODD, COLUMN):
        assert text in whole, text
    for text in (IMAGE, SCRIPT, ODD.replace("\ue000", "&")):  # one of the stand-ins
        assert text in by_column, text


def test_data_docs_load_nothing_and_lead_to_the_results(refused: tuple[str, Path]) -> None:
    message, docs = refused
    pages = sorted(docs.rglob("*"))
    assert [page.name for page in pages] == ["index.html", "raw_label_table.html"]
    for path in pages:
        assert "://" not in path.read_text(encoding="utf-8")
        tags = Page(path).tags
        policy = {a.get("content") for tag, a in tags if tag == "meta" and "http-equiv" in a}
        assert policy == {
            "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
        }
        assert not [a for _, a in tags if "src" in a]
        links = [a["href"] for tag, a in tags if tag == "a"]
        assert links
        assert all((docs / str(link)).is_file() for link in links)
    (listed,) = re.findall(r"^Details: (.*)$", message, re.M)
    assert listed == f"{docs.relative_to(docs.parents[2])}/raw_label_table.html"
    assert Page(docs / "index.html").text.count("checks failed") == 1
    assert "sex is M or F" in Page(docs / "raw_label_table.html").text


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium to open the page in")
def test_a_browser_runs_nothing_of_a_table(refused: tuple[str, Path], tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt.html"  # shows that the browser would
    spoilt.write_text(f"<title>page</title>{IMAGE}")
    titles = []
    for page in (spoilt, refused[1] / "raw_label_table.html"):
        options = (
            "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --dump-dom"
        )
        dom = subprocess.run(
            ["chromium", *options.split(), f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        (title,) = re.findall("<title>(.*?)</title>", dom)
        titles.append(title)
    assert titles == ["owned", "Label table: 3 of 12 checks failed"]
