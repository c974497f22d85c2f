"""What each command of `python -m ral.release` does, as do_<command>; what is slow to import is imported where it is used."""

import json
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

from ral.config.base import load
from ral.config.gate import GateParams
from ral.errors import UserError
from ral.files import atomic_write, private_folder, read_json, write_json
from ral.release.bundle import build_bundle, require_file, verify
from ral.release.ledger import Ledger
from ral.release.registry import ARCHIVED, Registry, Release
from ral.wording import PHANTOM_SHORT, RESEARCH, estimate

GATE = "gate"


def do_list(options: Namespace) -> None:
    """Print the releases, oldest first, with stage, commit, and whether the bundle is there."""
    registry = Registry(options.state)
    registry.champion()
    releases = registry.releases()
    for release in releases:
        there = "" if release.bundle.is_dir() else "  (bundle pruned)"
        print(f"{release.version:<8} {release.stage:<10} {release.commit[:12]}{there}")
    if not releases:
        print(f"No release in {options.state}.")


def do_show(options: Namespace) -> None:
    """Print what a release's bundle says, after it was held against its hashes."""
    release = Registry(options.state).release(options.version)
    content = verify(release.bundle)
    macro = read_json(release.bundle / "metrics.json")["macro"]
    print(_notice(content))
    print(f"{release.version}  {release.stage}  commit {release.commit}")
    print(f"findings: {', '.join(content['findings'])}")
    for name in ("ap", "auroc"):
        found = macro[name]
        print(f"macro {name.upper()}: {estimate(found)}")
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
    """Print the ledger; a broken chain is an error."""
    # The registry first: what a crash kept from the ledger is written now.
    Registry(options.state).champion()
    entries = Ledger(options.state).entries()
    for entry in entries:
        facts = {k: v for k, v in entry.items() if k not in ("number", "time", "what", "before")}
        print(f"{entry['number']:>4}  {entry['time']}  {entry['what']:<11} {json.dumps(facts, ensure_ascii=False)}")  # fmt: skip
    print(f"{len(entries)} entries; each follows from the one before.")


def do_predict(options: Namespace) -> None:
    """Write raw logits of prepared images."""
    import numpy as np

    from ral.data.dataset import open_dataset
    from ral.release.rescore import score

    release = _wanted(Registry(options.state), options.version)
    require_file(options.prepared / "dataset.json")
    dataset = open_dataset(options.prepared)
    table = score(release, dataset, np.arange(len(dataset.studies)))
    with atomic_write(options.out) as draft:
        table.to_parquet(draft, index=False)
    print(_notice(verify(release.bundle), dataset.metadata["phantom"]))
    print(f"{len(table):,} images scored by {release.version}: {options.out} (raw logits, not probabilities)")


def do_rescore(options: Namespace) -> None:
    """Write the champion's logits where the step evaluate looks for those of the model before; else remove them."""
    from ral.data.baseline import LOGITS
    from ral.release.collect import champion_logits

    table, line = champion_logits(options.workspace, Registry(options.state))
    path = options.workspace / "baseline" / LOGITS
    if table is None:
        path.unlink(missing_ok=True)
    else:
        with atomic_write(path) as draft:
            table.to_parquet(draft, index=False)
    print(line)


def do_judge(options: Namespace) -> None:
    """Write the gate's decision on the model of a run."""
    from ral.release import gate
    from ral.release.collect import evidence

    found, config, floors = evidence(options.workspace, Registry(options.state), options.run_id)
    decision = gate.judge(found, config, floors) | {"run_id": options.run_id}
    write_json(options.out, decision)
    print(decision["notice"])
    for rule in decision["rules"]:
        print(f"  {rule['result']:<8} {rule['sentence']}")
    print(decision["sentence"])


def do_register(options: Namespace) -> None:
    """Make the model of a run a release, write the decision down, and promote if asked and allowed."""
    decision = _verdict(options.decision, options.run_id)
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
        "decision", once="run_id", run_id=options.run_id, decision=decision["decision"], version=version,
        commit=options.commit, champion=decision["champion"], set=decision["set"], sentence=decision["sentence"],
    )  # fmt: skip
    print(f"{version}: {decision['sentence']}")
    by = options.approved_by or (GATE if options.promote and decision["decision"] == "PROMOTE" else None)
    if by is None:
        print(f"{version} is registered and not promoted.")
        return
    _still_applies(registry, version, decision)
    if registry.release(version).stage != ARCHIVED:
        registry.promote(version, by, decision["sentence"])
    print(f"{version} is {registry.release(version).stage}.")


def do_prune(options: Namespace) -> None:
    """Remove old bundles."""
    gate = load(options.params, GateParams).gate
    gone = Registry(options.state).prune(gate.keep, (gate.anchor,) if gate.anchor else ())
    print(f"Bundles removed: {', '.join(gone) or 'none'}.")


def do_open_sealed(options: Namespace) -> None:
    """Score a release on the sealed test images, after writing down who wanted it and why."""
    from ral.release.opening import score_sealed

    registry = Registry(options.state)
    release = registry.release(options.version)
    verify(release.bundle)
    before = sum(entry["what"] == "open-sealed" for entry in registry.ledger.entries())
    metrics = score_sealed(
        release,
        options.prepared,
        options.params,
        lambda: registry.ledger.append(
            "open-sealed", version=release.version, by=options.by, reason=options.reason, opened_before=before
        ),
    )
    path = registry.folder / f"{release.version}.sealed-{before + 1}.json"
    write_json(path, metrics | {"version": release.version, "opened_before": before})
    print(PHANTOM_SHORT if metrics["data"] == "phantom" else RESEARCH)
    for name in ("ap", "auroc"):
        found = metrics["macro"][name]
        print(f"sealed macro {name.upper()}: {estimate(found)}")
    times = "for the first time" if not before else f"{before} times before"
    print(f"The sealed set was opened {times}; each look makes it worth less. Result: {path}")


def _wanted(registry: Registry, version: str | None) -> Release:
    release = registry.release(version) if version else registry.champion()
    if release is None:
        raise UserError(
            "There is no champion yet. Name a release: --version (see python -m ral.release list)."
        )
    return release


def _verdict(path: Path, run_id: str) -> dict[str, Any]:
    try:
        decision = dict(read_json(require_file(path)))
        if decision["run_id"] == run_id and decision["decision"] in ("PROMOTE", "HOLD", "REJECT"):
            return decision
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is no decision. Run python -m ral.release judge again.") from None
    raise UserError(f"{path} is not the decision of run {run_id}. Run python -m ral.release judge again.")


def _still_applies(registry: Registry, version: str, decision: dict[str, Any]) -> None:
    """Refuse to promote over a champion that the decision does not speak of."""
    champion = registry.champion()
    now = champion.version if champion else None
    if now not in (version, decision["champion"]):
        raise UserError(
            f"{version} was compared with {decision['champion'] or 'no champion'}, but {now} is the champion now. "
            "Run judge again."
        )


def _notice(content: dict[str, Any], phantom: bool = False) -> str:
    return PHANTOM_SHORT if content["phantom"] or phantom else RESEARCH
