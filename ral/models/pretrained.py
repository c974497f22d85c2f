"""Pretrained weights from the Hugging Face Hub or a local file; safetensors only, never pickle."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ral.config.model import ModelConfig
from ral.errors import UserError
from ral.files import sha256


def find_weights(config: ModelConfig, timm: Any) -> Path | None:
    """Path of the weights selected by `model.pretrained`, downloaded if they are on the hub; None for none.

    Raises:
        UserError: there are no such weights, or the hub is unreachable.
    """
    if config.pretrained == "none":
        return None
    if config.pretrained != "hub":
        path = Path(config.pretrained)
        if not path.is_file():
            raise UserError(f"model.pretrained: no such file: {path}.")
        return path
    pretrained_config = timm.get_pretrained_cfg(config.backbone, allow_unregistered=True)
    if pretrained_config is None or not pretrained_config.hf_hub_id:
        raise UserError(
            f"model.pretrained: timm has no pretrained weights on the hub for {config.backbone}. Models "
            "that have some: "
            f"python -c \"import timm; print(timm.list_pretrained('{config.backbone.split('.')[0]}*'))\"."
        )
    file_name = pretrained_config.hf_hub_filename or ""
    if not file_name.endswith(".safetensors"):
        file_name = "model.safetensors"
    return _download(pretrained_config.hf_hub_id, file_name)


def _download(repository: str, name: str) -> Path:
    """Download a file from the hub, or take it from the local hub cache."""
    import huggingface_hub
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(huggingface_hub.hf_hub_download(repository, name))
    except (
        LocalEntryNotFoundError
    ):  # a subclass of EntryNotFoundError, but raised when the hub is unreachable
        reason = "the hub is unreachable and the file is not in the local cache"
        retry = True
    except (EntryNotFoundError, RepositoryNotFoundError):
        reason = f"it has no {name} (pickled weights are not supported)"
        retry = False
    except (HfHubHTTPError, OSError) as error:
        reason, retry = str(error).splitlines()[0], True
    raise UserError(
        f"model.pretrained: {repository} on the Hugging Face hub: {reason}. Give the path of a local .safetensors "
        "file instead, or none.",
        retry=retry,
    )


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read a safetensors file.

    Returns:
        Tensors by timm's names (from a model.safetensors of this project, those of the backbone), and the
        SHA-256 of the file.

    Raises:
        UserError: the file is not in safetensors format, or holds non-finite values.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"model.pretrained: {path} is not a safetensors file ({error}). Pickled checkpoints (.pt, .pth, .bin) are "
            "not supported, because loading them can run code: convert them with safetensors.torch.save_file."
        ) from None
    refuse_not_finite(tensors, f"model.pretrained: {path}: ")
    backbone = {
        name.removeprefix("backbone."): tensor
        for name, tensor in tensors.items()
        if name.startswith("backbone.")
    }
    return backbone or tensors, sha256(path)


def refuse_not_finite(tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Refuse weights with NaN or infinite values.

    Args:
        tensors: by name.
        prefix: start of the error message.

    Raises:
        UserError: a value is NaN or infinite.
    """
    for name, tensor in tensors.items():
        bad = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
        if bad:
            raise UserError(
                f"{prefix}{bad:,} of {tensor.numel():,} values of {name} are not finite (NaN or infinite). "
                "These weights are "
                "unusable: train again with a lower train.learning_rate, or use other weights.",
                kind="not_finite",
            )


def check_loaded(backbone: nn.Module, fresh: nn.Module, path: Path, name: str) -> None:
    """Check that the file holds this network: timm loads tensors with matching names and ignores the rest.

    Args:
        backbone: after loading.
        fresh: the same network as initialised; tensors that still equal it were not loaded.
        path: the file, for the message.
        name: the backbone, for the message.

    Raises:
        UserError: fewer than 90 % of the weight tensors came from the file.
    """
    head = getattr(backbone, "pretrained_cfg", {}).get("classifier") or ()
    head = (head,) if isinstance(head, str) else tuple(head)
    initial = dict(fresh.named_parameters())
    weights = {
        key: tensor
        for key, tensor in backbone.named_parameters()
        if tensor.ndim > 1 and not key.startswith(tuple(f"{part}." for part in head))
    }
    missing = [key for key, tensor in weights.items() if tensor.equal(initial[key])]
    if len(missing) > 0.1 * len(weights):
        raise UserError(
            f"model.pretrained: {path} holds weights of another network: {len(missing)} of the {len(weights)} weight "
            f"tensors of {name} are not in it, such as {missing[0]}."
        )
