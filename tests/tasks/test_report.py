"""Who prints the table of results at the end: the last stage only where nobody else does."""

from pathlib import Path

import pytest
from report_inputs import make, write

from ral.log import LOG_FORMAT
from ral.reporting.summary import summary
from tasks import report


@pytest.mark.parametrize(
    ("variables", "printed"),
    [
        pytest.param({}, False, id="dvc repro, as make run calls it"),
        pytest.param({report.EXPERIMENT: "HEAD"}, True, id="dvc exp run"),
        pytest.param(
            {report.EXPERIMENT: "HEAD", LOG_FORMAT: "json"}, False, id="dvc exp run in flows.compare"
        ),
    ],
)
def test_an_experiment_ends_with_the_table(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variables: dict[str, str],
    printed: bool,
) -> None:
    for name in (report.EXPERIMENT, LOG_FORMAT):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    inputs, out = make(phantom=True), tmp_path / "out/report.html"
    report.run(inputs.params, *write(inputs, tmp_path), out)
    assert capsys.readouterr().out == (f"{summary(inputs.metrics, out)}\n" if printed else "")
