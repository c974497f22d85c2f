"""Flow nightly: retrain on the current data, compare with the champion, and replace it only if the new model is better.

    prefect deploy -n nightly                              # once: the schedule is in prefect.yaml
    prefect deployment run nightly/nightly                 # now
    python -m flows.nightly                                # here and now, without a server

A run uses its own workspace at a revision of the project (flows/workspace.py) and ends in one of: no changes; data
refused; or a decision, PROMOTE, HOLD or REJECT (ral/release), in the ledger with the bundle of its model. Killed at any
point, the next run ends what was left and goes on: stages that were done come from DVC's cache, training from
its checkpoint.
"""

import argparse

if __name__ == "__main__":  # before the imports that take seconds: --help needs none of them
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()

import shutil
import subprocess
from pathlib import Path

from prefect import flow, runtime, task
from prefect.client.schemas.objects import State
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.states import Cancelled, Completed

from flows.artifacts import decision_text, open_command, publish_bundle, publish_decision, report_copy
from flows.cli import run_from_cli
from flows.flow_run import FlowRun, flow_run
from flows.notifications import notify_on_failure, send_notification
from flows.overrides import Changes
from flows.settings import FlowsEnvironment
from flows.stage_tasks import run_module_task, stages
from flows.workspace import (
    RunInputs,
    Workspace,
    WorkspaceLockedError,
    commit_ledger,
    commit_run,
    git,
    load_run_inputs,
)
from ral import artifacts
from ral.artifacts import Stage
from ral.config.base import load
from ral.config.params import Params
from ral.data.baseline import PROFILE, SPLIT
from ral.data.exclusions import Exclusions, remove_from_split
from ral.data.privacy import Pseudonymizer
from ral.errors import UserError
from ral.files import sha256
from ral.inference.bundle import verify
from ral.release.decision import GateDecision, Rule
from ral.release.ledger import Decision
from ral.release.registry import Registry

# The stages of a night, from one to another: a look at the data, which may be unchanged; a new model; and, after the
# champion was scored on the same images, its evaluation. A test checks that no stage is left out.
LOOK: tuple[Stage, Stage] = ("manifest", "phantom")
TRAIN: tuple[Stage, Stage] = ("validate", "train")
EVALUATE: tuple[Stage, Stage] = ("features", "report")


class Approval(RunInput):
    """The answer of the person who approves."""

    approve: bool = False
    """Whether the challenger becomes the champion."""
    name: str
    """Who decides; recorded in the ledger."""


@flow(
    name="nightly",
    on_failure=[notify_on_failure],
    on_crashed=[notify_on_failure],
    on_cancellation=[notify_on_failure],
)
def nightly(revision: str = "HEAD", changes: Changes | None = None) -> State:
    """Retrain, and promote the new model if the gate passes it.

    Args:
        revision: branch, tag or commit of the project; HEAD is its default branch.
        changes: parameters by dotted name with their values, checked as params.yaml is.
    """
    try:
        with flow_run("nightly", run_id()) as run:
            return retrain(run, revision, changes)
    except WorkspaceLockedError as locked:
        return Cancelled(message=str(locked))


def retrain(run: FlowRun, revision: str, changes: Changes | None) -> State:
    """Retrain in the workspace that the run holds, decide, and record."""
    environment = run.environment
    workspace = task(name="workspace")(run.checkout)(revision, changes)
    folder, registry = workspace.folder, Registry(run.state_dir)
    gate = load(folder / "params.yaml", Params).gate
    pull(workspace)
    stage = stages(folder, environment)
    stage(*LOOK)
    run_inputs = RunInputs(
        revision=workspace.revision, changes=changes or {}, manifest=sha256(folder / artifacts.MANIFEST)
    )
    if unchanged(registry, run_inputs):
        text = "No changes since the last run (data, code and parameters are identical); nothing to do."
        return Completed(name="NoChanges", message=text)
    install_baseline(folder, registry)
    exclude_from_baseline(folder)
    stage(*TRAIN)
    run_module_task("rescore", folder, "-m", "ral.release", "rescore")
    stage(*EVALUATE)
    decision_file = folder / "runs" / run.id / "decision.json"
    run_module_task(
        "gate", folder, "-m", "ral.release", "judge", "--run-id", run.id, "--out", str(decision_file)
    )
    decision = GateDecision.read(decision_file)
    publish_decision(decision)
    if gate.approval and decision.decision == "PROMOTE":
        decision = approved(decision, folder)
        decision.write(decision_file)
    commit = task(name="record")(commit_run)(workspace, run.id, run_inputs)
    run_module_task(
        "register", folder, "-m", "ral.release", "register", "--commit", commit, "--decision", str(decision_file),
        "--run-id", run.id, "--promote",
    )  # fmt: skip
    release = next(release for release in registry.releases() if release.commit == commit)
    publish_bundle(release.bundle)
    push(workspace, environment)
    tidy(folder, environment)
    champion = registry.champion()
    text = f"{decision.decision}: {release.version}; champion {champion.version if champion else 'none'}"
    send_notification(environment.flows.notify, f"Nightly run {run.id}: {text}")
    return Completed(name=decision.decision.capitalize(), message=text)


def run_id() -> str:
    """Id of this flow run: sortable by time, and unchanged when a suspended run resumes."""
    return f"{runtime.flow_run.scheduled_start_time:%Y%m%dT%H%M%S}-{runtime.flow_run.id[:8]}"


def pull(workspace: Workspace) -> None:
    """Pull data that the project tracks with DVC (NAME.dvc); external data is read in place."""
    if any(name.endswith(".dvc") for name in git(workspace.folder, "ls-files").splitlines()):
        run_module_task("pull", workspace.folder, "-m", "dvc", "--wait-for-lock", "pull", "--recursive", ".")


def unchanged(registry: Registry, run_inputs: RunInputs) -> bool:
    """Whether the last decision was about the same data, code and parameters."""
    decisions = [entry.event for entry in registry.ledger.entries() if isinstance(entry.event, Decision)]
    return bool(decisions) and load_run_inputs(registry.repository, decisions[-1].commit) == run_inputs


def install_baseline(folder: Path, registry: Registry) -> None:
    """Install the champion's profile (for drift) and the last split (no patient changes split) as the baseline.

    Raises:
        UserError: a bundle is missing or damaged; nothing is installed.
    """
    releases, champion = registry.releases(), registry.champion()
    for release in (*releases[-1:], *([champion] if champion else [])):
        verify(release.bundle)
    if releases:
        shutil.copyfile(releases[-1].bundle / SPLIT, folder / artifacts.BASELINE / SPLIT)
    if champion:
        shutil.copyfile(champion.bundle / PROFILE, folder / artifacts.BASELINE / PROFILE)


def exclude_from_baseline(folder: Path) -> None:
    """Remove the patients of data.exclude_patients from the baseline's split, which the run records.

    Raises:
        UserError: the file that lists them is missing or invalid.
    """
    data = load(folder / "params.yaml", Params).data
    split = folder / artifacts.BASELINE / SPLIT
    remove_from_split(split, Exclusions.of(data, folder), Pseudonymizer.of(data, folder))


def approved(decision: GateDecision, folder: Path) -> GateDecision:
    """Suspend the run until a person answers; return the decision with the answer. No worker is occupied meanwhile.

    The question names this model: if the data has changed when the run resumes, it asks again about the new model.
    """
    model = sha256(folder / artifacts.WEIGHTS)
    answer = suspend_flow_run(
        wait_for_input=Approval.with_initial_data(
            description=f"{decision_text(decision)}\n\n{open_command(report_copy(folder))}\n\n"
            f"Model {model[:12]}. Should it become the champion?",
        ),
        timeout=7 * 24 * 3600,
        key=f"approve-{model}",
    )
    sentence = f"{answer.name} {'approved' if answer.approve else 'did not approve'}."
    rule = Rule(rule="approval", result="passes" if answer.approve else "holds", sentence=sentence)
    held = {} if answer.approve else {"decision": "HOLD", "sentence": f"HOLD: {sentence}"}
    return decision.model_copy(update={**held, "rules": [*decision.rules, rule]})


def push(workspace: Workspace, environment: FlowsEnvironment) -> None:
    """Push the record and the outputs to the remotes that ral.toml names.

    Raises:
        UserError: the repository is unreachable or rejects the push.
        StageError: the DVC remote is unreachable or rejects the push.
    """
    target = environment.flows
    if target.push_git:
        commit_ledger(workspace)
        try:
            git(workspace.registry, "push", "--quiet", target.push_git, "refs/heads/*", "refs/tags/*")
        except subprocess.CalledProcessError as error:
            raise UserError(
                f"{target.push_git} (flows.push_git) rejected the record: {error.stderr.strip()}. The decision "
                f"stands; push it manually: git -C {workspace.registry} push {target.push_git} "
                "'refs/heads/*' 'refs/tags/*'"
            ) from None
    if target.push_dvc:
        run_module_task("push", workspace.folder, "-m", "dvc", "push", "-r", target.push_dvc)


def tidy(folder: Path, environment: FlowsEnvironment) -> None:
    """Remove old bundles and old run folders."""
    run_module_task("tidy", folder, "-m", "ral.release", "prune")
    for old in sorted((folder / "runs").iterdir())[: -environment.flows.keep]:
        shutil.rmtree(old)


if __name__ == "__main__":
    with run_from_cli():
        nightly()
