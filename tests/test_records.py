"""Records: what is written, what is read back, and what is wrong with a file that is not one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from simulated_release import gate_decision

from ral import runs
from ral.data.dataset_info import DatasetInfo, read_class_counts
from ral.errors import UserError
from ral.files import read_json
from ral.records import Failure, StepFailure
from ral.release.decision import GateDecision, Rule


def test_fields_that_were_not_given_are_not_written(tmp_path: Path) -> None:
    approval = Rule(rule="approval", result="passes", sentence="Ada approved.")
    held = Rule(rule="tail", result="holds", sentence="?", estimate=None, low=None, high=None, floor=-0.05)
    decision = gate_decision().model_copy(update={"rules": [held, approval]})
    decision.write(tmp_path / "decision.json")
    content = read_json(tmp_path / "decision.json")
    assert content["rules"] == [
        {"rule": "tail", "result": "holds", "sentence": "?", "estimate": None, "low": None, "high": None, "floor": -0.05},
        {"rule": "approval", "result": "passes", "sentence": "Ada approved."},
    ]  # fmt: skip
    assert content["findings"] == {}
    assert content["anchor"] is None
    assert content["gate"]["keep"] == 5, "the defaults of the limits are written"
    assert GateDecision.read(tmp_path / "decision.json") == decision


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "a.json is not valid JSON (Expecting property name"),
        ('{"kind": "bug", "retry": false}', "a.json: message: Field required. Make the file again."),
        ('{"kind": "odd", "retry": false, "message": ""}', "a.json: kind: Input should be 'input'"),
        ('{"kind": "bug", "retry": false, "message": "", "more": 1}', "a.json: more: Extra inputs"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError) as error:
        Failure.read(tmp_path / "a.json")
    assert str(error.value).startswith(f"{tmp_path}/{told}")


@pytest.mark.parametrize("read", [DatasetInfo.read, read_class_counts])
@pytest.mark.parametrize("text", ["{", '{"train": {"images": "many"}}'])
def test_a_damaged_file_of_a_stage_names_the_stage_that_makes_it(
    tmp_path: Path, read: Callable[[Path], object], text: str
) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json.*Run `dvc repro preprocess`\.$"):
        read(tmp_path / "a.json")


def test_a_run_is_recorded_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(runs.RUN_ID, "one")
    path = tmp_path / "runs/one/run.json"
    with runs.track_step("phantom"):
        assert read_json(path)["steps"]["phantom"].keys() == {"started", "status"}
    with pytest.raises(ZeroDivisionError), runs.track_step("manifest"):
        raise ZeroDivisionError("by none")
    content = read_json(path)
    assert content.keys() == {"id", "commit", "uncommitted_changes", "machine", "steps"}
    assert (content["id"], content["commit"]) == ("one", None), "there is no repository"
    assert {name: step["status"] for name, step in content["steps"].items()} == {
        "phantom": "done",
        "manifest": "failed: by none",
    }
    record = runs.RunRecord.read(path)
    assert record.steps["phantom"].finished is not None
    assert record.to_json() == content


def test_a_failed_step_is_written_for_programs(tmp_path: Path) -> None:
    failure = StepFailure(step="train", kind="disk", retry=True, message="größer")
    failure.write(tmp_path / "failure.json")
    assert json.loads((tmp_path / "failure.json").read_text()) == {
        "step": "train", "kind": "disk", "retry": True, "message": "größer",
    }  # fmt: skip
