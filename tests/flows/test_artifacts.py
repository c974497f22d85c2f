"""What a run's page shows: text, the headline, narrow tables, and only what is the run's own."""

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from evaluated import HOSTILE
from report_inputs import make, write
from servers import Server
from simulated_release import gate_decision

from flows.artifacts import decision_text, headline, open_command, shown
from ral.release.decision import Rule

NAMES = ["validation", "metrics", "findings", "report"]
PUBLISH = """
import os, sys
from pathlib import Path
from prefect import flow, runtime
from flows import artifacts

@flow
def publish():
    artifacts.publish_validation(Path("validated/validation.json"))
    artifacts.publish_metrics(Path("reports"))
    artifacts.publish_report(Path())
    print("flow run", runtime.flow_run.id)

publish()
"""


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str], wait_until: Callable[..., None]
) -> Iterator[Server]:
    served = Server(Path(), tmp_path_factory.mktemp("prefect"), environment)
    try:
        served.start_and_wait(wait_until)
        yield served
    finally:
        served.end()


def published(
    folder: Path, server: Server, run: Callable[..., subprocess.CompletedProcess[str]], name: str
) -> str:
    """Id of a flow run that published the outputs in `folder`."""
    done = run("python", "-c", PUBLISH, cwd=folder, **server.settings, RAL_RUN_ID=name)
    return done.stdout.rpartition("flow run ")[2].split()[0]


def test_a_runs_artifacts_stay_its_own(
    tmp_path: Path, server: Server, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    inputs = make(phantom=True)
    checks = [check.model_copy(update={"column": "x"}) for check in inputs.validation.checks]
    inputs = replace(inputs, validation=inputs.validation.model_copy(update={"checks": checks}))
    write(inputs, tmp_path)
    page = tmp_path / "reports/report.html"
    page.write_text("page one")
    (tmp_path / "reports/run.css").write_text("run one")
    one = published(tmp_path, server, run, "one")
    page.write_text("page two")
    two = published(tmp_path, server, run, "two")
    assert one != two
    # A page opens an artifact by its key, so a key belongs to one run.
    latest = server.ask("artifacts/latest")
    keys = {item["key"]: item["flow_run_id"] for item in latest}
    assert keys == {f"{name}-{flow_run[:8]}": flow_run for flow_run in (one, two) for name in NAMES}
    shown = {item["key"]: item for item in latest}
    report = shown[f"report-{one[:8]}"]["data"]
    assert f"xdg-open {tmp_path}/runs/one/report.html" in report
    assert (tmp_path / "runs/one/report.html").read_text() == "page one"
    assert (tmp_path / "runs/one/run.css").read_text() == "run one"
    assert "difference +0.031 (+0.011 to +0.052)" in report
    assert "PHANTOM DATA" in report
    assert "://" not in "".join(item["data"] + (item["description"] or "") for item in latest)
    ap, auroc = (inputs.metrics.macro[metric].value for metric in ("ap", "auroc"))
    assert shown[f"report-{one[:8]}"]["description"].startswith(
        f"AP {ap:.3f}, AUROC {auroc:.3f} (macro). PHANTOM"
    )
    findings = json.loads(shown[f"findings-{one[:8]}"]["data"])
    assert list(findings[0]) == ["finding", "tier", "positive", "AP", "AUROC"]
    assert findings[0]["AP"] == "0.612 (0.561–0.675)"
    assert findings[2]["AP"] == "not estimable"


def test_the_headline_is_a_table_and_a_command() -> None:
    inputs = make(phantom=False)
    text = headline(inputs.metrics, "", Path("/a b/report.html"))
    macro = inputs.metrics.macro
    assert text.startswith(
        "**Research software, not a medical device.**\n\n| findings | number | AP | AUROC | F1 |"
    )
    assert f"| all findings (macro) | 2 | {macro['ap'].value:.3f} (" in text
    assert "| tail | 0 | not estimable | not estimable | not estimable |" in text
    assert "2,345 test images of 678 patients; 95% intervals." in text
    assert "xdg-open '/a b/report.html'\n" in text
    assert "Previous" not in text
    assert open_command(Path("/a/`b`/report.html")).count("````") == 4


def test_a_decision_is_text_in_markdown() -> None:
    sentence = "![x](http://h/x) <img src=x>\n# Not a title"
    rule = Rule(rule=f"tail {HOSTILE}", result="holds", sentence=sentence)
    changes = {"sentence": f"HOLD: {HOSTILE}", "rules": [rule]}
    text = decision_text(gate_decision().model_copy(update=changes))
    assert "<" not in text
    assert "://" not in text
    assert [line[:2] for line in text.splitlines()] == ["**", "", "- ", "", "Re"]
    assert "\\!\\[x\\](http&#58;//h/x) &#60;img src=x&#62; \\# Not a title" in text


def test_cells_of_tables_are_text_in_markdown() -> None:
    (row,) = shown(
        [
            {
                "finding": HOSTILE,
                "column": "![x](http://h/x)",
                "ap": "-0.5",
                "rows": 3,
                "kept": "Pleural_Thickening",
            }
        ]
    )
    assert "<" not in row["finding"]
    assert row["column"] == "\\!\\[x\\](http&#58;//h/x)"
    assert (row["ap"], row["rows"], row["kept"]) == ("-0.5", 3, "Pleural_Thickening")
