"""The command `python -m ral.release forget`: what is left of the patients of data.exclude_patients."""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ral import artifacts
from ral.config.base import load
from ral.config.environment import load_environment
from ral.config.params import Params
from ral.data.baseline import read_split
from ral.data.images.file_hashes import FileHashCache
from ral.errors import UserError
from ral.files import sha256
from ral.release.forget_places import Place, find_places, prune
from ral.release.forget_traces import Leaving, Traces, read_leaving
from ral.release.ledger import Forgetting, Pruning
from ral.release.registry import Registry, Release
from ral.wording import notice

# Decimals of the numbers in the ledger.
DECIMALS = 6


def run(options: Namespace, registry: Registry) -> None:
    """Carry out the command.

    Args:
        options: workspace, list, prune, against, by and reason.
        registry: the releases and the ledger.

    Raises:
        UserError: no patient is excluded, a reason is missing, or see `find_places`, `prune` and `_audit`.
    """
    if not options.list and not (options.reason or "").strip():
        raise UserError("--reason is missing: the ledger records why.")
    workspace = options.workspace
    params = load(workspace / "params.yaml", Params)
    data = load_environment().located(params.data)
    leaving = read_leaving(data, workspace, FileHashCache(registry.state_dir))
    if not (options.list or options.prune):
        _audit(options, registry, leaving, params)
        return
    traces = Traces.of(leaving)
    places = find_places(workspace, registry.state_dir, traces)
    if options.list:
        _show(places)
        return
    done, size = prune(places, registry.state_dir, traces)
    _show([place for place in places if place.action == "manual"], "Not removed:")
    removed: dict[str, int] = {}
    for place in done:
        removed[place.what] = removed.get(place.what, 0) + len(place.paths)
    if done:
        registry.ledger.append(Pruning(by=options.by, reason=options.reason, removed=removed, bytes=size))
    for what, count in removed.items():
        print(f"removed {count:>6,}  {what}")
    print(f"{size / 1e6:,.1f} MB freed." if done else "Nothing to remove.")


def _show(places: Sequence[Place], title: str = "") -> None:
    if places and title:
        print(title)
    for place in places:
        first = place.paths[0]
        more = f" and {len(place.paths) - 1:,} more files" if len(place.paths) > 1 else ""
        print(f"{place.action:<8} {place.size / 1e6:>9,.1f} MB  {place.what}: {first}{more}")
    if not title:
        print("Nothing that was searched has excluded patients." if not places else "Nothing was removed.")


def _audit(options: Namespace, registry: Registry, leaving: Leaving, params: Params) -> None:
    from ral.inference.released import open_model
    from ral.release.forget import audit

    release = _release(registry, options.against)
    workspace: Path = options.workspace
    weights = sha256(workspace / artifacts.WEIGHTS) if (workspace / artifacts.WEIGHTS).is_file() else None
    if weights is None:
        raise UserError(f"{workspace / artifacts.WEIGHTS} does not exist. Retrain first (dvc repro).")
    if weights == sha256(release.bundle / "model/model.safetensors"):
        raise UserError(
            f"The model in {workspace} is {release.version} itself. Name the release that was trained on the excluded "
            "patients with --against."
        )
    split = read_split(workspace / artifacts.PREPARED)
    if split is None or Traces.of(leaving).patients(split.index.to_series()).any():
        raise UserError(
            f"{workspace / artifacts.PREPARED} still has excluded patients, or is not there. Run the pipeline with "
            "data.exclude_patients first (dvc repro)."
        )
    models = [open_model(release.bundle), open_model(workspace)]
    monochrome1 = params.preprocess.monochrome1
    result, forgotten, others = audit(
        leaving, workspace, release.bundle, models, params.evaluate, monochrome1
    )
    patients, images = len(set(forgotten.patients.tolist())), len(forgotten.patients)
    numbers = {
        name: [None if value is None else round(value, DECIMALS) for value in interval.values()]
        for name, interval in asdict(result).items()
    }
    registry.ledger.append(
        Forgetting(
            version=release.version, model=weights, by=options.by, reason=options.reason, patients=patients,
            images=images, test_images=len(others.patients), numbers=numbers, sentence=result.sentence(),
        )
    )  # fmt: skip
    print(notice(any(model.phantom for model in models)))
    print(
        f"{images:,} forgotten images of {patients:,} patients on which {release.version} was trained; "
        f"{len(others.patients):,} test images; intervals from resampled patients."
    )
    print("\n".join([*result.lines(), result.sentence()]))


def _release(registry: Registry, version: str | None) -> Release:
    release = registry.release(version) if version else registry.champion()
    if release is None:
        raise UserError("There is no champion yet. Name a release with --against.")
    return release
