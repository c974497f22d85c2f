"""`ral evaluate` and the packages that it needs."""

import sys
from pathlib import Path

import pytest
from conftest import ROOT

from ral.cli.__main__ import main


def test_a_missing_extra_is_named_before_anything_is_read(
    release: Path,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("image_id,patient_id,Mass\n")
    arguments = ["evaluate", "--model", release, "--data", table, "--images", folder, "-o", tmp_path / "out"]
    for module, extra in (("dask", "data"), ("jinja2", "report")):
        monkeypatch.setitem(sys.modules, module, None)
        assert main([str(argument) for argument in arguments]) == 1
        message = capsys.readouterr().err
        assert f"needs the extra `{extra}` ({module} is not installed)" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_prepared_set_needs_no_extra_but_the_report(run) -> None:
    script = (
        "import sys, ral.external.command, ral.external.run, ral.external.labelled, ral.external.tables\n"
        "sys.exit(', '.join({'dask', 'great_expectations', 'pydicom', 'deepspeed', 'jinja2'} & sys.modules.keys()) or 0)"
    )
    run(sys.executable, "-c", script, cwd=ROOT)
