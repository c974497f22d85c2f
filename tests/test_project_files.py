"""Licence, citation, changelog and links: what stands beside the code, and what a wheel takes along."""

import email
import hashlib
import re
import subprocess
import tomllib
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# SHA-256 of https://www.apache.org/licenses/LICENSE-2.0.txt
APACHE_2_0 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"
HOLDERS = "the ral contributors"


def test_the_licence_is_the_official_text_with_our_name() -> None:
    text = (ROOT / "LICENSE").read_text()
    official, count = re.subn(
        rf"Copyright \d{{4}} {HOLDERS}", "Copyright [yyyy] [name of copyright owner]", text
    )
    assert count == 1
    assert hashlib.sha256(official.encode()).hexdigest() == APACHE_2_0


def test_a_wheel_has_the_licence_the_types_and_the_files_beside_the_code(wheel: Path) -> None:
    info = f"ral-{PROJECT['version']}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        assert archive.read(f"{info}/licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    # An old classifier of a licence beside the expression is refused by PyPI.
    assert not [line for line in metadata.get_all("Classifier") if line.startswith("License ::")]
    files = subprocess.run(["git", "ls-files", "ral"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(files.stdout.split()) <= names
    assert "ral/py.typed" in names
    # Stages and flows belong to a project folder.
    assert {name.split("/")[0] for name in names} == {"ral", info}


def test_the_citation_has_what_its_format_requires() -> None:
    citation = YAML(typ="safe", pure=True).load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert (citation["cff-version"], citation["type"]) == ("1.2.0", "software")
    assert citation["authors"] == [{"name": HOLDERS}]
    assert str(citation["version"]) == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    (paper,) = citation["references"]
    assert {"type", "authors", "title"} <= set(paper)
    assert all(set(author) == {"family-names", "given-names"} for author in paper["authors"])
    assert "arXiv:2308.05542" in [identifier["value"] for identifier in paper["identifiers"]]


def test_the_changelog_keeps_its_format() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    for version in versions[1:]:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", version), version
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", text, re.MULTILINE)) <= kinds


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\((?!https?://)([\w./-]+)(?:#[\w-]+)?\)", (ROOT / page).read_text())
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_the_readme_names_licence_citation_and_how_to_take_part() -> None:
    readme = (ROOT / "README.md").read_text()
    for name in ("LICENSE", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        assert f"]({name})" in readme
