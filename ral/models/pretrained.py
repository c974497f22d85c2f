"""Weights to start from: found on the Hugging Face hub or in a local file, safetensors only, never a pickle."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ral.config.model import ModelConfig
from ral.errors import UserError
from ral.files import sha256


def find_weights(config: ModelConfig, timm: Any) -> Path | None:
    """The file that `model.pretrained` names, downloaded first if it is on the hub; None for none.

    Raises:
        UserError: there are no such weights, or the hub cannot be reached.
    """
    if config.pretrained == "none":
        return None
    if config.pretrained != "hub":
        path = Path(config.pretrained)
        if not path.is_file():
            raise UserError(f"model.pretrained: there is no file {path}.")
        return path
    known = timm.get_pretrained_cfg(config.backbone, allow_unregistered=True)
    if known is None or not known.hf_hub_id:
        raise UserError(
            f"model.pretrained: timm names no weights on the hub for {config.backbone}. Names that have some: "
            f"python -c \"import timm; print(timm.list_pretrained('{config.backbone.split('.')[0]}*'))\"."
        )
    custom = known.hf_hub_filename or ""
    return _download(known.hf_hub_id, custom if custom.endswith(".safetensors") else "model.safetensors")


def _download(repository: str, name: str) -> Path:
    """Fetch one file from the hub, or take it from the hub's cache on this machine."""
    import huggingface_hub
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(huggingface_hub.hf_hub_download(repository, name))
    except LocalEntryNotFoundError:  # a kind of EntryNotFoundError, but it means that the hub did not answer
        reason = "the hub cannot be reached and the file is not in the cache of this machine"
        retry = True
    except (EntryNotFoundError, RepositoryNotFoundError):
        reason = f"there is no {name} (weights in other formats are pickles, which are not loaded)"
        retry = False
    except (HfHubHTTPError, OSError) as error:
        reason, retry = str(error).splitlines()[0], True
    raise UserError(
        f"model.pretrained: {repository} on the Hugging Face hub: {reason}. Give the path of a local .safetensors "
        "file instead, or none.",
        retry=retry,
    )


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read a safetensors file whole.

    Returns:
        Tensors by timm's names (of this project's own model.safetensors: the backbone's), and the SHA-256 of the file.

    Raises:
        UserError: the file is not safetensors, whatever its name says, or holds a number that is not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"model.pretrained: {path} is not a safetensors file ({error}). Pickled checkpoints (.pt, .pth, .bin) are "
            "not loaded, since opening one can run code; save its weights with safetensors.torch.save_file."
        ) from None
    refuse_not_finite(tensors, f"model.pretrained: {path}: ")
    own = {
        name.removeprefix("backbone."): tensor
        for name, tensor in tensors.items()
        if name.startswith("backbone.")
    }
    return own or tensors, sha256(path)


def refuse_not_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights that would make every logit no number.

    Args:
        tensors: by name.
        where: what the message begins with.

    Raises:
        UserError: a number is infinite or none.
    """
    for name, tensor in tensors.items():
        bad = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
        if bad:
            raise UserError(
                f"{where}{bad:,} of the {tensor.numel():,} numbers of {name} are not finite (NaN or infinite). These weights are "
                "of no use: train again with a lower train.learning_rate, or take other weights.",
                kind="not_finite",
            )


def check_loaded(backbone: nn.Module, fresh: nn.Module, path: Path, name: str) -> None:
    """Make sure that the file held this network: timm takes what fits by name and is silent about the rest.

    Args:
        backbone: after loading.
        fresh: the same network as drawn; what still equals it did not come from the file.
        path: the file, for the message.
        name: the backbone, for the message.

    Raises:
        UserError: less than nine tenths of the weight tensors came from the file.
    """
    head = getattr(backbone, "pretrained_cfg", {}).get("classifier") or ()
    head = (head,) if isinstance(head, str) else tuple(head)
    drawn = dict(fresh.named_parameters())
    weights = {
        key: tensor
        for key, tensor in backbone.named_parameters()
        if tensor.ndim > 1 and not key.startswith(tuple(f"{part}." for part in head))
    }
    missing = [key for key, tensor in weights.items() if tensor.equal(drawn[key])]
    if len(missing) > 0.1 * len(weights):
        raise UserError(
            f"model.pretrained: {path} holds weights of another network: {len(missing)} of the {len(weights)} weight "
            f"tensors of {name} are not in it, such as {missing[0]}."
        )
