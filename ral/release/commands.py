"""The commands of `python -m ral.release`, as do_<command>; slow imports are inside the functions that need them."""

import json
import shutil
from argparse import Namespace
from pathlib import Path

from ral import artifacts
from ral.config.base import load
from ral.config.gate import GateParams
from ral.errors import UserError
from ral.evaluation.results import Mean
from ral.evaluation.specs import LABELS, RANKED_BY
from ral.files import atomic_write, private_folder, read_json, write_json
from ral.inference.bundle import BUNDLE, Bundle, verify
from ral.records import problem
from ral.release.bundle import build_bundle, require_file
from ral.release.decision import GateDecision
from ral.release.ledger import Decision, Ledger, Opening
from ral.release.registry import ARCHIVED, Registry, Release
from ral.wording import notice

GATE = "gate"


def do_list(options: Namespace) -> None:
    """Print a table of the releases, oldest first: stage, date, test metrics, commit."""
    registry = Registry(options.state)
    registry.champion()
    releases, dates = registry.releases(), registry.dates()
    if not releases:
        print(f"No release in {options.state}.")
        return
    form = "{:<7}  {:<10}  {:<16}  {:<19}  {:<19}  {}"
    lines, phantom = [], False
    for release in releases:
        ap, auroc, is_phantom = _macro(release.bundle)
        phantom |= is_phantom
        date = f"{dates[release.version]:%Y-%m-%d %H:%M}"
        lines.append(form.format(release.version, release.stage, date, ap, auroc, release.commit[:12]))
    print(notice(phantom))
    print(form.format("version", "stage", "registered (UTC)", "macro AP", "macro AUROC", "commit"))
    print("\n".join(lines))


def _macro(bundle: Path) -> tuple[str, str, bool]:
    """Macro AP and AUROC of a bundle for a table, without verifying it, and whether they are of phantom images."""
    if not bundle.is_dir():
        return "bundle pruned", "", False
    try:
        macro = _macro_means(bundle)
        return macro["ap"].text(), macro["auroc"].text(), bool(read_json(bundle / BUNDLE)["phantom"])
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return "bundle damaged", "", False


def _macro_means(bundle: Path) -> Mean:
    """The means over the findings; only these, so that bundles of earlier versions can be shown."""
    return Mean.model_validate(read_json(bundle / artifacts.METRICS.name)["macro"])


def do_show(options: Namespace) -> None:
    """Verify a release's bundle and print a summary of it."""
    release = Registry(options.state).release(options.version)
    bundle = verify(release.bundle)
    macro = _macro_means(release.bundle)
    print(_notice(bundle))
    print(f"{release.version}  {release.stage}  commit {release.commit}")
    print(f"findings: {', '.join(bundle.findings)}")
    for name in RANKED_BY:
        print(f"macro {LABELS[name]}: {macro[name].text()}")
    print(read_json(release.bundle / "decision.json")["sentence"])
    print(f"bundle: {release.bundle}")


def do_promote(options: Namespace) -> None:
    """Make a release the champion."""
    Registry(options.state).promote(options.version, options.by, options.reason)
    print(f"{options.version} is the champion.")


def do_rollback(options: Namespace) -> None:
    """Make an earlier champion the champion again."""
    version = Registry(options.state).rollback(options.by, options.reason, options.to)
    print(f"{version} is the champion again.")


def do_ledger(options: Namespace) -> None:
    """Print the ledger; a broken hash chain is an error."""
    # Reconcile first: a crash may have kept promotions from the ledger.
    Registry(options.state).champion()
    entries = Ledger(options.state).entries()
    for entry in entries:
        text = json.dumps(entry.event.to_json(), ensure_ascii=False)
        print(f"{entry.number:>4}  {entry.time}  {entry.event.what:<12} {text}")
    print(f"{len(entries)} entries; hash chain verified.")


def do_predict(options: Namespace) -> None:
    """Write raw logits of prepared images."""
    import numpy as np

    from ral.data.dataset import open_dataset
    from ral.release.rescore import score

    release = _select_release(Registry(options.state), options.version)
    require_file(options.prepared / artifacts.DATASET.name)
    dataset, bundle = open_dataset(options.prepared), verify(release.bundle)
    table = score(release, bundle, dataset, np.arange(len(dataset)))
    with atomic_write(options.out) as draft:
        table.to_parquet(draft, index=False)
    print(_notice(bundle, dataset.info.phantom))
    print(f"{len(table):,} images scored by {release.version}: {options.out} (raw logits, not probabilities)")


def do_rescore(options: Namespace) -> None:
    """Write the champion's logits as the baseline of the step evaluate; remove the file if there are none."""
    from ral.data.baseline import LOGITS
    from ral.release.collect import champion_logits

    table, message = champion_logits(options.workspace, Registry(options.state))
    path = options.workspace / artifacts.BASELINE / LOGITS
    if table is None:
        path.unlink(missing_ok=True)
    else:
        with atomic_write(path) as draft:
            table.to_parquet(draft, index=False)
    print(message)


def do_judge(options: Namespace) -> None:
    """Write the gate's decision on the model of a run."""
    from ral.release import gate
    from ral.release.collect import collect_inputs

    inputs, config, limits = collect_inputs(options.workspace, Registry(options.state), options.run_id)
    decision = gate.evaluate_gate(inputs, config, limits)
    decision.write(options.out)
    print(decision.notice)
    for rule in decision.rules:
        print(f"  {rule.result:<8} {rule.sentence}")
    print(decision.sentence)


def do_register(options: Namespace) -> None:
    """Register the model of a run as a release, record the decision, and promote if requested and allowed."""
    decision = _read_decision(options.decision, options.run_id)
    registry = Registry(options.state)
    draft = private_folder(registry.folder) / f".draft-{options.commit[:12]}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        build_bundle(options.workspace, decision, options.commit, draft)
        version = registry.register(options.commit, draft)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    registry.ledger.append(
        Decision(
            run_id=decision.run_id, decision=decision.decision, version=version, commit=options.commit,
            champion=decision.champion, set=decision.set, sentence=decision.sentence,
        )
    )  # fmt: skip
    print(f"{version}: {decision.sentence}")
    by = options.approved_by or (GATE if options.promote and decision.decision == "PROMOTE" else None)
    if by is None:
        print(f"{version} is registered, not promoted.")
        return
    _require_same_champion(registry, version, decision)
    if registry.release(version).stage != ARCHIVED:
        registry.promote(version, by, decision.sentence)
    print(f"{version} is {registry.release(version).stage}.")


def do_prune(options: Namespace) -> None:
    """Remove old bundles."""
    gate = load(options.params, GateParams).gate
    pruned = Registry(options.state).prune(gate.keep, (gate.anchor,) if gate.anchor else ())
    print(f"Bundles removed: {', '.join(pruned) or 'none'}.")


def do_forget(options: Namespace) -> None:
    """List or remove what is kept of excluded patients, or compare the retrained model with a release on them."""
    from ral.release.forget_command import run

    run(options, Registry(options.state))


def do_open_sealed(options: Namespace) -> None:
    """Score a release on the sealed test images, after recording who requested it and why."""
    from ral.release.opening import score_sealed

    registry = Registry(options.state)
    release = registry.release(options.version)
    bundle = verify(release.bundle)
    opened_before = sum(isinstance(entry.event, Opening) for entry in registry.ledger.entries())
    opening = Opening(
        version=release.version, by=options.by, reason=options.reason, opened_before=opened_before
    )
    metrics = score_sealed(
        release, bundle, options.prepared, options.params, lambda: registry.ledger.append(opening)
    )
    path = registry.folder / f"{release.version}.sealed-{opened_before + 1}.json"
    write_json(path, metrics.to_json() | {"version": release.version, "opened_before": opened_before})
    print(notice(metrics.phantom))
    for name in RANKED_BY:
        print(f"sealed macro {LABELS[name]}: {metrics.macro[name].text()}")
    count = opened_before + 1
    print(
        f"The sealed set was opened ({count} {'times' if opened_before else 'time'} so far); each use "
        f"reduces its value. Result: {path}"
    )


def _select_release(registry: Registry, version: str | None) -> Release:
    release = registry.release(version) if version else registry.champion()
    if release is None:
        raise UserError(
            "There is no champion yet. Select a release with --version (see python -m ral.release list)."
        )
    return release


def _read_decision(path: Path, run_id: str) -> GateDecision:
    try:
        decision = GateDecision.model_validate(read_json(require_file(path)))
    except ValueError as error:
        raise UserError(
            f"{path} is not a gate decision ({problem(error)}). Run python -m ral.release judge again."
        ) from None
    if decision.run_id != run_id:
        raise UserError(f"{path} is not the decision of run {run_id}. Run python -m ral.release judge again.")
    return decision


def _require_same_champion(registry: Registry, version: str, decision: GateDecision) -> None:
    """Refuse to promote if the champion has changed since the decision."""
    champion = registry.champion()
    current = champion.version if champion else None
    if current not in (version, decision.champion):
        raise UserError(
            f"{version} was compared with {decision.champion or 'no champion'}, but the champion is now {current}. "
            "Run judge again."
        )


def _notice(bundle: Bundle, phantom: bool = False) -> str:
    return notice(bundle.phantom or phantom)
