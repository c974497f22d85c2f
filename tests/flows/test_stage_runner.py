"""The stage runner on a toy DVC project: what is tried again, what is ended, and what the run's page shows."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
from conftest import ROOT, processes_in
from servers import Server

# A stage that fails as steps do: the file `failures` says how often it still does, and if a retry can help.
TOY = """
import json, os, signal, sys, time
from pathlib import Path
def save(*_):
    time.sleep(1)
    sys.exit("interrupted: the toy has saved")
signal.signal(signal.SIGTERM, save)
plan = json.loads(Path("plan.json").read_text())
tries = Path("tries"); tries.write_text((tries.read_text() if tries.exists() else "") + "x")
for share in (10, 60):
    text = f"training: {share} % ({share} of 100 images), 5.0 images/s, 0:01 left"
    line = {"level": "INFO", "logger": "toy", "message": text, "progress": {"done": share, "total": 100, "unit": "images"}}
    print(json.dumps(line), flush=True)
print(json.dumps({"level": "WARNING", "logger": "toy", "message": "the toy warns"}), flush=True)
if len(tries.read_text()) <= plan["failures"]:
    run = Path("runs", os.environ["RAL_RUN_ID"]); run.mkdir(parents=True, exist_ok=True)
    (run / "failure.json").write_text(json.dumps({"step": "train", "kind": "input", "retry": plan["retry"], "message": "broke"}))
    sys.exit("error: the toy broke at https://me:hunter2@127.0.0.1:1/x.git")
time.sleep(plan["seconds"])
Path("out.txt").write_text("done")
"""

FLOW = """
import os, sys
from pathlib import Path
from prefect import flow
from flows.stage_tasks import stages
from flows.settings import load_flows_environment
os.environ["RAL_RUN_ID"] = "toy"
@flow
def toy():
    stages(Path(sys.argv[1]), load_flows_environment())("train")
toy()
"""


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str], wait_until
) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("prefect_home")
    served = Server(home, home, environment)
    try:
        served.start_and_wait(wait_until)
        yield served
    finally:
        served.end()


@pytest.fixture
def toy(tmp_path: Path, run: Callable[..., subprocess.CompletedProcess[str]]) -> Path:
    (tmp_path / "toy.py").write_text(TOY)
    stage = {"train": {"cmd": "exec python toy.py", "deps": ["toy.py", "plan.json"], "outs": ["out.txt"]}}
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": stage}))
    run("git", "init", "-q", cwd=tmp_path)
    run("dvc", "init", "-q", cwd=tmp_path)
    return tmp_path


def plan(folder: Path, failures: int = 0, retry: bool = False, seconds: float = 0) -> None:
    (folder / "plan.json").write_text(json.dumps({"failures": failures, "retry": retry, "seconds": seconds}))


def start(
    folder: Path, server: Server, environment: dict[str, str], **variables: str
) -> subprocess.Popen[str]:
    env = (
        environment
        | server.settings
        | {"RAL_FLOWS_RETRY_SECONDS": "0.1", "PYTHONPATH": str(ROOT)}
        | variables
    )
    return subprocess.Popen(
        [sys.executable, "-c", FLOW, str(folder)], cwd=ROOT, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def test_what_a_retry_can_mend_is_tried_again(toy: Path, server: Server, environment: dict[str, str]) -> None:
    plan(toy, failures=1, retry=True)
    flow = start(toy, server, environment)
    printed = flow.communicate()[0]
    assert flow.returncode == 0, printed
    assert (toy / "tries").read_text() == "xx"
    assert "the toy broke" in printed
    assert (toy / "out.txt").read_text() == "done"
    progress = server.artifacts()["progress-train"]
    assert progress["data"] == 60
    assert "60 % (60 of 100 images)" in progress["description"]


def test_bad_data_is_not_tried_again(toy: Path, server: Server, environment: dict[str, str]) -> None:
    plan(toy, failures=1, retry=False)
    flow = start(toy, server, environment)
    printed = flow.communicate()[0]
    assert flow.returncode != 0
    assert (toy / "tries").read_text() == "x"
    assert "Stage train failed:" in printed
    assert "error: the toy broke at https://127.0.0.1:1/x.git" in printed
    assert "hunter2" not in printed


def test_retries_come_to_an_end(toy: Path, server: Server, environment: dict[str, str]) -> None:
    plan(toy, failures=9, retry=True)
    flow = start(toy, server, environment, RAL_FLOWS_RETRIES="3")
    flow.communicate()
    assert flow.returncode != 0
    assert (toy / "tries").read_text() == "xxxx"


def test_a_stage_that_takes_too_long_is_ended(
    toy: Path, server: Server, environment: dict[str, str], wait_until
) -> None:
    plan(toy, seconds=3600)
    flow = start(toy, server, environment, RAL_FLOWS_TIMEOUT_HOURS="{train = 0.002}")
    printed = flow.communicate()[0]
    assert flow.returncode != 0
    assert "Stage train timed out after 0.002 h (flows.timeout_hours)" in printed
    # Once at most: on a busy machine the time is up before the stage begins.
    assert not (toy / "tries").exists() or (toy / "tries").read_text() == "x"
    assert printed.count("Running stage 'train'") <= 1
    wait_until(lambda: not processes_in(toy))


def test_what_a_stage_says_while_its_run_is_ended_is_logged(
    toy: Path, server: Server, environment: dict[str, str], wait_until
) -> None:
    plan(toy, seconds=3600)
    flow = start(toy, server, environment)
    wait_until(lambda: (toy / "tries").exists() and (toy / "tries").read_text())
    flow.send_signal(signal.SIGTERM)
    printed = flow.communicate()[0]
    assert flow.returncode != 0
    assert "interrupted: the toy has saved" in printed
    wait_until(lambda: not processes_in(toy))


def test_a_stage_waits_for_somebody_elses_dvc(
    toy: Path, server: Server, environment: dict[str, str], wait_until
) -> None:
    plan(toy, seconds=10)
    other = subprocess.Popen([sys.executable, "-m", "dvc", "repro", "-q"], cwd=toy, env=environment)
    wait_until(lambda: (toy / "tries").exists())
    flow = start(toy, server, environment, RAL_FLOWS_RETRIES="8", RAL_FLOWS_RETRY_SECONDS="1")
    printed = flow.communicate()[0]
    assert other.wait() == 0
    assert flow.returncode == 0, printed
    assert (toy / "tries").read_text() == "x", "the other one has done it"


@pytest.fixture
def heard(server: Server, run: Callable[..., subprocess.CompletedProcess[str]]) -> Iterator[list[str]]:
    """What a webhook on this machine is told, through the notification block custom-webhook/told.

    The block custom-webhook/refused has an address with a secret, and is refused.
    """
    heard: list[str] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            text = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"]
            if self.path == "/":
                heard.append(text)
            self.send_response(204 if self.path == "/" else 403)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    receiver = HTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    make = (
        "from prefect.blocks.notifications import CustomWebhookNotificationBlock as B;"
        f"b = 'http://127.0.0.1:{receiver.server_port}/';"
        "make = lambda url: B(name='t', url=url, json_data={'text': '{{body}}'});"
        "make(b).save('told', overwrite=True); make(b + 'services/hunter2').save('refused', overwrite=True)"
    )
    run("python", "-c", make, cwd=ROOT, PYTHONPATH=str(ROOT), **server.settings)
    yield heard
    receiver.shutdown()


def test_a_text_is_sent_to_the_block_that_is_named(
    server: Server, heard: list[str], run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    tell = "from flows.notifications import send_notification; send_notification('custom-webhook/told', 'the night failed'); send_notification('slack-webhook/none', 'x')"
    printed = run("python", "-c", tell, cwd=ROOT, PYTHONPATH=str(ROOT), **server.settings).stdout
    assert heard == ["the night failed"]
    assert "Notification via slack-webhook/none failed" in printed


def test_the_address_of_a_block_is_kept_to_itself(
    server: Server, heard: list[str], run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    tell = "from flows.notifications import send_notification; send_notification('custom-webhook/refused', 'the night failed')"
    printed = run("python", "-c", tell, cwd=ROOT, PYTHONPATH=str(ROOT), **server.settings).stdout
    assert "Notification via custom-webhook/refused failed: HTTPStatusError" in printed
    assert "hunter2" not in printed
    assert heard == []


ENDED = """
from uuid import uuid4
from prefect import Flow
from prefect.client.schemas import FlowRun
from prefect.states import Failed
from flows.notifications import notify_on_failure
state = Failed(message="row 3: \\x1b[2J of https://me:hunter2@host/x.git")
notify_on_failure(Flow(print, name="nightly"), FlowRun(name="brave-\\x07owl", flow_id=uuid4()), state)
"""


def test_what_is_told_of_a_run_that_failed_is_plain(
    server: Server, heard: list[str], run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    settings = server.settings | {"PYTHONPATH": str(ROOT), "RAL_FLOWS_NOTIFY": "custom-webhook/told"}
    printed = run("python", "-c", ENDED, cwd=ROOT, **settings).stdout
    assert heard == [r"nightly brave-\x07owl: Failed. row 3: \x1b[2J of https://host/x.git"]
    assert "hunter2" not in printed
    assert "\x1b[2J" not in printed


@pytest.mark.parametrize(
    ("flow", "arguments", "why"),
    [
        ("train-ral", (), "Stage manifest failed"),
        ("nightly", (), "cannot fetch the project"),
        pytest.param("compare", ("loss.name=ral,bce",), "cannot fetch the project", marks=pytest.mark.long),
    ],
)
def test_each_flow_tells_of_a_run_that_failed(
    server: Server,
    heard: list[str],
    tmp_path: Path,
    run: Callable[..., subprocess.CompletedProcess[str]],
    flow: str,
    arguments: tuple[str, ...],
    why: str,
) -> None:
    """In a folder that is no project, so that the first thing that each of them does fails."""
    settings = server.settings | {"PYTHONPATH": str(ROOT), "RAL_FLOWS_NOTIFY": "custom-webhook/told"}
    settings |= {"RAL_STATE_DIR": str(tmp_path / "state")}
    module = f"flows.{flow.replace('-', '_')}"
    run("python", "-m", module, *arguments, cwd=tmp_path, code=1, **settings)
    (text,) = heard
    assert text.startswith(f"{flow} ")
    assert ": Failed. " in text
    assert why in text


def test_a_run_that_was_killed_is_marked_as_crashed(
    server: Server, environment: dict[str, str], run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    flow_id = httpx.post(f"{server.url}/flows/", json={"name": "toy"}, timeout=None).json()["id"]
    running = {"flow_id": flow_id, "state": {"type": "RUNNING", "name": "Running"}}
    made = httpx.post(f"{server.url}/flow_runs/", json=running, timeout=None).json()["id"]
    mark = f"from flows.notifications import mark_crashed; mark_crashed('{made}'); mark_crashed('{flow_id}')"
    run("python", "-c", mark, cwd=ROOT, PYTHONPATH=str(ROOT), **server.settings)
    (found,) = server.ask("flow_runs", flow_runs={"id": {"any_": [made]}})
    assert found["state"]["type"] == "CRASHED"
    assert "killed" in found["state"]["message"]
