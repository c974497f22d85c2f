"""ral.toml and the RAL_… variables: which wins, how values are read, and what is refused."""

import json
from pathlib import Path

import pytest

from flows.settings import FlowsEnvironment, load_flows_environment
from ral.config.environment import keys, load_environment, variable_name
from ral.errors import UserError

ROOT = Path(__file__).parent.parent.parent


def test_without_a_file_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    environment = load_environment(tmp_path, {})
    assert environment.state_dir == tmp_path / "ral"
    assert (environment.training.launcher, environment.training.processes) == ("local", None)
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert load_environment(tmp_path, {}).state_dir == tmp_path / "me/.local/state/ral"


def test_a_variable_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "ral.toml").write_text(
        '[training]\nlauncher = "slurm"\nprocesses = 2\n[training.slurm]\nnodes = 4\n'
    )
    variables = {
        "RAL_TRAINING_PROCESSES": "3",
        "RAL_TRAINING_GRACE": "30",
        "RAL_TRAINING_SSH": "false",
        "RAL_TRAINING_HOSTFILE": "~/hosts",
        "RAL_TRAINING_SLURM_TIME": "01:00:00",
        "RAL_TRAINING_SLURM_LINES": '["--constraint=a100"]',
        "RAL_TRAINING_SLURM_ACCOUNT": "",
        "RAL_STATE_DIR": "/scratch/ral",
        "RAL_RUN_ID": "somebody else's",
    }
    environment = load_environment(tmp_path, variables)
    training = environment.training
    assert (training.launcher, training.processes, training.slurm.nodes) == ("slurm", 3, 4)
    assert (training.grace, training.ssh) == (30.0, False)
    assert training.hostfile == Path.home() / "hosts"
    assert (training.slurm.time, training.slurm.lines) == ("01:00:00", ["--constraint=a100"])
    assert training.slurm.account is None
    assert environment.state_dir == Path("/scratch/ral")


def test_variables_that_belong_together_may_come_in_any_order(tmp_path: Path) -> None:
    both = {"RAL_DASK_ADDRESS": "tcp://node1:8786", "RAL_DASK_TARGET": "address", "RAL_STATE_DIR": "/scratch"}
    assert load_environment(tmp_path, both).dask.target == "address"
    with pytest.raises(UserError, match="RAL_DASK_ADDRESS: dask: target `address` and the key address"):
        load_environment(tmp_path, {"RAL_DASK_ADDRESS": "tcp://node1:8786", "RAL_STATE_DIR": "/scratch"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[trainig]\n", ["ral.toml: unknown key `trainig`", "Did you mean `training`?", "state_dir"]),
        ("[training]\nlauncer = 'local'\n", ["training: unknown key `launcer`", "`launcher`", "hostfile"]),
        ("[training.slurm]\nnode = 1\n", ["training.slurm: unknown key `node`", "`nodes`"]),
        ("[training]\nlauncher = 'sun'\n", ["training.launcher", "'slurm'", "'sun'"]),
        ("[training]\nprocesses = 0\n", ["training.processes", "greater than or equal to 1"]),
        ("[training]\nprocesses = '2'\n", ["training.processes", "integer", "'2'"]),
        ("[training\n", ["ral.toml is not valid TOML"]),
    ],
)
def test_a_wrong_file_is_explained(tmp_path: Path, text: str, words: list[str]) -> None:
    (tmp_path / "ral.toml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_environment(tmp_path, {})
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("RAL_TRAINING_PROCESSES", "two", ["RAL_TRAINING_PROCESSES: training.processes", "'two'"]),
        (
            "RAL_TRAINING_PROCESES",
            "2",
            ["unknown", "Did you mean `RAL_TRAINING_PROCESSES`?", "RAL_TRAINING_GRACE"],
        ),
        ("RAL_TRAINING_LAUNCHER", "sun", ["RAL_TRAINING_LAUNCHER: training.launcher", "'sun'"]),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, name: str, value: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_environment(tmp_path, {name: value})
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize("where", ["variable", "file", "default"])
@pytest.mark.parametrize(
    "name", ["my state", "a#b", "a,b", "50%", "$HOME", "a'b", 'a"b', "a;b", "a\tb", "a:b", "a*", "relative"]
)
def test_a_state_dir_that_some_part_could_not_use_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, where: str
) -> None:
    path = name if name == "relative" else str(tmp_path / name)
    if where == "file":
        (tmp_path / "ral.toml").write_text(f"state_dir = {json.dumps(path)}\n")
    elif where == "default" and name != "relative":
        monkeypatch.setenv("XDG_STATE_HOME", path)
    with pytest.raises(UserError) as caught:
        load_environment(
            tmp_path, {} if where != "variable" and name != "relative" else {"RAL_STATE_DIR": path}
        )
    words = "is relative" if name == "relative" else "contains"
    assert all(word in str(caught.value) for word in (words, "RAL_STATE_DIR", name[:1])), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_state_dir_of_letters_and_plain_signs_is_taken(tmp_path: Path) -> None:
    for name in ("Zustand_ä", "a.b-c+d@e=f"):
        assert (
            load_environment(tmp_path, {"RAL_STATE_DIR": str(tmp_path / name)}).state_dir == tmp_path / name
        )


def test_a_state_dir_that_others_may_write_to_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o777)
    with pytest.raises(UserError, match="is writable by others"):
        load_environment(tmp_path, {"RAL_STATE_DIR": str(tmp_path / "state")})
    assert (tmp_path / "state").stat().st_mode & 0o7777 == 0o777


def test_every_key_has_a_line_of_doc_and_stands_in_the_docs() -> None:
    text = (ROOT / "docs/launching.md").read_text()
    for key, _ in keys(FlowsEnvironment):
        model: type = FlowsEnvironment
        *sections, name = key.split(".")
        for section in sections:
            model = model.model_fields[section].annotation
        assert model.model_fields[name].description, key
        assert f"| `{key}` |" in text, key
    assert text.partition("## Every key")[2].count("\n| `") == len(list(keys(FlowsEnvironment)))
    assert variable_name("training.slurm.nodes") in text


def test_the_section_of_the_flows_is_read_by_the_flows(tmp_path: Path) -> None:
    (tmp_path / "ral.toml").write_text("[flows]\nretries = 5\n")
    variables = {"RAL_FLOWS_KEEP": "3", "RAL_STATE_DIR": str(tmp_path / "state")}
    flows = load_flows_environment(tmp_path, variables).flows
    assert (flows.retries, flows.keep) == (5, 3)
    assert not hasattr(load_environment(tmp_path, variables), "flows")
    (tmp_path / "ral.toml").write_text("[flows]\nretrys = 5\n")
    load_environment(tmp_path, variables)
    with pytest.raises(UserError, match=r"flows: unknown key `retrys`.*`retries`"):
        load_flows_environment(tmp_path, variables)
    (tmp_path / "ral.toml").unlink()
    with pytest.raises(UserError, match=r"RAL_FLOWS_KEPT is unknown\. Did you mean `RAL_FLOWS_KEEP"):
        load_flows_environment(tmp_path, {"RAL_FLOWS_KEPT": "3"})
