"""The release commands on a small trained model: judge, register, promote, predict, rollback, open-sealed."""

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, set_params
from safetensors.torch import load_file, save_file
from simulated_release import MACRO, Ral, night, write_bundle

from ral.data.dataset import open_dataset
from ral.data.splits.holdout import sealed
from ral.errors import UserError
from ral.evaluation.rows import read_studies
from ral.files import read_json, sha256, write_json
from ral.inference.bundle import BUNDLE, verify
from ral.release.ledger import Ledger
from ral.release.paired import CHALLENGER
from ral.release.registry import Registry, Release
from ral.release.rescore import score

COMMANDS = (
    "list", "show", "promote", "rollback", "ledger", "open-sealed", "predict", "rescore", "judge", "register", "prune",
    "forget",
)  # fmt: skip
OTHER_RANGE = {"size": 32, "fit": "stretch", "range": "percentile"}


def disturb(project: Path, spread: float) -> None:
    """Another model: the same network with noise on its weights, and its logits."""
    weights = load_file(project / "models/model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, tensor in weights.items():
        if tensor.dtype == torch.float32 and "running" not in name:
            weights[name] = tensor + spread * torch.randn(tensor.shape, generator=generator)
    save_file(weights, project / "models/model.safetensors")
    folder = project / "models/bundle"
    (folder / "model").mkdir(parents=True)
    for name in ("model.safetensors", "model.json"):
        shutil.copy(project / "models" / name, folder / "model")
    dataset = open_dataset(project / "data/prepared")
    write_bundle(folder, [], params={"train": {"threads": 1}}, preparation=dataset.info.preparation)
    bundle = verify(folder)
    for split in ("val", "test"):
        table = score(Release(CHALLENGER, "", "", folder), bundle, dataset, dataset.rows(split))
        table.to_parquet(project / f"models/logits/{split}.parquet", index=False)
    shutil.rmtree(folder)


def predicted(ral: Ral, project: Path, *arguments: str) -> bytes:
    """Bytes of the logits that the champion gives."""
    out = project / "logits.parquet"
    assert "PHANTOM" in ral("predict", project / "data/prepared", "--out", out, *arguments)
    return pd.read_parquet(out).drop(columns="image_id").to_numpy().tobytes()


def test_a_bundle_names_the_run_of_its_report(
    ral: Ral, project: Path, commit: Callable[[str], str], tmp_path: Path
) -> None:
    (project / "reports/run.css").write_text("run one")
    night(ral, commit, project, "one")
    bundle = tmp_path / "state/releases/v0.1.0"
    assert (bundle / "run.css").read_text() == "run one"
    assert "run.css" in read_json(bundle / BUNDLE)["files"]


def test_weights_that_are_not_finite_become_no_release(
    ral: Ral, commit: Callable[[str], str], project: Path
) -> None:
    path = project / "models/model.safetensors"
    weights = load_file(path)
    next(t for t in weights.values() if t.is_floating_point()).view(-1)[0] = torch.nan
    save_file(weights, path)
    with pytest.raises(UserError, match="are not finite"):
        night(ral, commit, project, "one")
    assert "No release" in ral("list")


def test_from_a_first_model_to_a_rollback(
    ral: Ral, commit: Callable[[str], str], project: Path, tmp_path: Path
) -> None:
    baseline = project / "baseline/test_logits.parquet"
    baseline.write_text("of another day")
    assert "no champion yet" in ral("rescore", "--workspace", project)
    assert not baseline.exists()
    with pytest.raises(UserError, match="There is no champion yet"):
        ral("predict", project / "data/prepared", "--out", tmp_path / "x")
    output = night(ral, commit, project, "night-1", "--approved-by", "Ada")
    assert "v0.1.0 is champion" in output
    first = predicted(ral, project)
    logits = pd.read_parquet(project / "logits.parquet").set_index("image_id")
    own = pd.read_parquet(project / "models/logits/test.parquet").set_index("image_id")
    np.testing.assert_allclose(logits.loc[own.index], own, atol=1e-5)

    disturb(project, 0.5)
    assert "v0.1.0 scored on" in ral("rescore", "--workspace", project)
    studies = read_studies(project / "data/prepared")
    open_ = studies[(studies["split"] == "test").to_numpy() & ~sealed(studies, 0.3)]
    table = pd.read_parquet(baseline).set_index("image_id")
    assert set(table.index) == set(open_["image_id"])
    np.testing.assert_allclose(table, own.loc[table.index], atol=1e-5)

    output = night(ral, commit, project, "night-2", "--promote")
    decision = read_json(project / "night-2.json")
    assert decision["champion"] == "v0.1.0"
    assert decision["set"]["turn"] == 1
    assert decision["set"]["sealed_patients"] > 0
    assert decision["decision"] in ("HOLD", "REJECT")
    assert "registered, not promoted" in output
    ral("promote", "v0.2.0", "--reason", "to see what happens", "--by", "Ada")
    second = predicted(ral, project)
    assert second != first
    assert "v0.1.0 is the champion again" in ral("rollback", "--reason", "it was worse", "--by", "Ada")
    assert predicted(ral, project) == first
    assert predicted(ral, project, "--version", "v0.2.0") == second

    notice, header, *listed = ral("list").splitlines()
    assert notice.startswith("PHANTOM")
    assert [line.split()[:2] for line in listed] == [["v0.1.0", "champion"], ["v0.2.0", "archived"]]
    today = datetime.now(UTC).date()
    for name, text in MACRO.items():
        assert {line[header.index(f"macro {name}") :].partition("  ")[0] for line in listed} == {text}
    for line in listed:
        registered = datetime.strptime(line[header.index("registered") :][:16], "%Y-%m-%d %H:%M")
        assert abs((registered.date() - today).days) <= 1
    assert "PHANTOM" in ral("show", "v0.2.0")
    output = ral("ledger")
    assert [line.split()[2] for line in output.splitlines()[:-1]] == [
        "decision", "promote", "decision", "promote", "rollback",
    ]  # fmt: skip
    assert "it was worse" in output


def test_the_same_run_is_registered_once_and_a_retry_does_not_undo_a_rollback(
    ral: Ral, commit: Callable[[str], str], project: Path
) -> None:
    night(ral, commit, project, "night-1", "--approved-by", "Ada")
    disturb(project, 0.5)
    decision = project / "night-2.json"
    ral("judge", "--workspace", project, "--run-id", "night-2", "--out", decision)
    arguments = ("--workspace", project, "--commit", commit("two"), "--decision", decision, "--run-id", "night-2", "--approved-by", "Ada")  # fmt: skip
    before = decision.read_bytes()
    ral("register", *arguments)
    lines = ral("ledger")
    ral("register", *arguments)
    assert ral("ledger") == lines
    ral("rollback", "--reason", "no")
    ral("register", *arguments)
    assert "v0.1.0   champion" in ral("list")
    # Judged again, the run has its turn as before, not a later one.
    ral("judge", "--workspace", project, "--run-id", "night-2", "--out", decision)
    assert decision.read_bytes() == before
    with pytest.raises(UserError, match="not the decision of run night-3"):
        ral("register", *arguments[:-4], "--run-id", "night-3")
    decision.write_text("{}")
    with pytest.raises(UserError, match="is not a gate decision"):
        ral("register", *arguments)


@pytest.mark.parametrize("step", ["register", "append", "promote"])
def test_a_crash_within_register_is_mended_by_the_same_command(
    ral: Ral, commit: Callable[[str], str], project: Path, tmp_path: Path, step: str
) -> None:
    patched = Ledger if step == "append" else Registry
    work = getattr(patched, step)

    def crash(*arguments: Any, **named: Any) -> None:
        work(*arguments, **named)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patched, step, crash)
        with pytest.raises(KeyboardInterrupt):
            night(ral, commit, project, "night-1", "--approved-by", "Ada")
    made = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=tmp_path / "work", capture_output=True, text=True, check=True
    )
    arguments = ("--workspace", project, "--commit", made.stdout.strip(), "--run-id", "night-1")
    output = ral("register", *arguments, "--decision", project / "night-1.json", "--approved-by", "Ada")
    assert "v0.1.0 is champion" in output
    assert [line.split()[2] for line in ral("ledger").splitlines()[:-1]] == ["decision", "promote"]
    assert [path.name for path in (tmp_path / "state/releases").iterdir()] == ["v0.1.0"]


def test_a_verdict_against_another_champion_promotes_nothing(
    ral: Ral, commit: Callable[[str], str], project: Path
) -> None:
    night(ral, commit, project, "night-1")
    decision = read_json(project / "night-1.json")
    night(ral, commit, project, "night-2", "--approved-by", "Ada")
    assert decision["champion"] is None
    arguments = ("--workspace", project, "--commit", commit("three"), "--decision", project / "night-1.json")
    with pytest.raises(UserError, match=r"the champion is now v0\.2\.0"):
        ral("register", *arguments, "--run-id", "night-1", "--approved-by", "Ada")
    assert "v0.2.0   champion" in ral("list")


def test_a_command_verifies_a_bundle_once(
    ral: Ral, commit: Callable[[str], str], project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    night(ral, commit, project, "night-1", "--approved-by", "Ada")
    set_params(project, {"gate": {"margin": 0.1, "anchor": "v0.1.0"}})
    read: Counter[str] = Counter()

    def counted(path: Path) -> str:
        read[str(path)] += 1
        return sha256(path)

    monkeypatch.setattr("ral.inference.bundle.sha256", counted)
    bundle = tmp_path / "state/releases/v0.1.0"
    files = {str(bundle / name) for name in read_json(bundle / BUNDLE)["files"]}
    prepared, out = project / "data/prepared", tmp_path / "out"
    for command in (
        ("show", "v0.1.0"),
        ("promote", "v0.1.0", "--reason", "again"),
        ("predict", prepared, "--out", out),
        ("rescore", "--workspace", project),
        ("judge", "--workspace", project, "--run-id", "night-2", "--out", out),
        (
            "open-sealed",
            "v0.1.0",
            "--prepared",
            prepared,
            "--params",
            project / "params.yaml",
            "--reason",
            "x",
        ),
    ):
        read.clear()
        ral(*command)
        assert read == dict.fromkeys(files, 1), command[0]


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("models/logits/test.parquet", r"test.parquet does not exist"),
        ("data/prepared/dataset.json", "dataset.json does not exist"),
        ("params.yaml", "params.yaml does not exist"),
        ("data/validated/validation.json", "validation.json does not exist"),
    ],
)
def test_what_is_missing_is_named(ral: Ral, project: Path, gone: str, message: str) -> None:
    (project / gone).unlink()
    with pytest.raises(UserError, match=message):
        ral("judge", "--workspace", project, "--run-id", "a", "--out", project / "decision.json")
    assert not (project / "decision.json").exists()


def test_images_that_were_prepared_differently_are_refused(
    ral: Ral, commit: Callable[[str], str], project: Path, tmp_path: Path
) -> None:
    night(ral, commit, project, "night-1", "--approved-by", "Ada")
    set_params(project, {"preprocess": {"fit": "pad"}})
    assert "preprocessed differently" in ral("rescore", "--workspace", project)
    output = ral("judge", "--workspace", project, "--run-id", "b", "--out", project / "b.json")
    assert "HOLD" in output
    assert "preprocess.fit" in output
    prepared = project / "data/prepared"
    write_json(prepared / "dataset.json", read_json(prepared / "dataset.json") | {"preparation": OTHER_RANGE})
    with pytest.raises(
        UserError, match=r"v0\.1\.0 was trained .*preprocess\.range=own; .*preprocess\.range=percentile"
    ):
        ral("predict", prepared, "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_the_gray_range_of_a_bundle_of_an_earlier_version_is_in_its_params(
    ral: Ral, commit: Callable[[str], str], project: Path, tmp_path: Path
) -> None:
    set_params(project, {"preprocess": {"range": "percentile"}})
    night(ral, commit, project, "night-1", "--approved-by", "Ada")
    bundle = tmp_path / "state/releases/v0.1.0"
    assert verify(bundle).preparation.range == "percentile"
    content = read_json(bundle / BUNDLE)
    del content["preparation"]["range"]
    write_json(bundle / BUNDLE, content)
    assert verify(bundle).preparation.range == "percentile"
    del content["params"]["preprocess"]["range"]
    write_json(bundle / BUNDLE, content)
    assert verify(bundle).preparation.range == "own"


def test_prune_keeps_what_params_say(ral: Ral, commit: Callable[[str], str], project: Path) -> None:
    for run in ("night-1", "night-2", "night-3"):
        night(ral, commit, project, run, *(("--approved-by", "Ada") if run == "night-1" else ()))
    set_params(project, {"gate": {"keep": 1}})
    assert "removed: v0.2.0" in ral("prune", "--params", project / "params.yaml")
    assert ["bundle pruned" in line for line in ral("list").splitlines()[2:]] == [False, True, False]
    with pytest.raises(UserError, match="was pruned"):
        ral("promote", "v0.2.0", "--reason", "too late")


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_instant(command: str) -> None:
    heavy = ("torch", "pandas", "pyarrow", "gto", "scipy", "matplotlib")
    script = (
        "import runpy, sys\n"
        f"sys.argv = ['ral.release', *{[command] if command else []!r}, '--help']\n"
        "try: runpy.run_module('ral.release', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        f"sys.exit(str([m for m in {heavy!r} if m in sys.modules] or '') or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: ral release" in done.stdout
