"""Load a trained network from the output of the step train. Nothing is unpickled or downloaded."""

from pathlib import Path

import torch
from torch import Tensor

from ral.errors import UserError
from ral.models import Network, build_model
from ral.models.custom import require_same_code
from ral.models.info import ModelInfo, read_model_info
from ral.models.pretrained import refuse_not_finite


def load_network(
    folder: Path, weights: str = "model.safetensors", prefix: str = ""
) -> tuple[Network, ModelInfo]:
    """Build the network described by `folder`/model.json and load its weights.

    Pretrained weights are not needed: the file holds every tensor. torch's random state is not changed.

    Args:
        folder: output folder of the step train.
        weights: name of the weights file in it.
        prefix: what the names of its tensors lack at the start.

    Returns:
        The network on the CPU, float32, in eval mode, with gradients disabled; and the content of model.json.

    Raises:
        UserError: a file is missing or corrupt, or the weights belong to another network or are not finite; or the
            network is the user's own class and its code is not in the project as it was trained.
    """
    info = read_model_info(folder)
    require_same_code(info.model.backbone, info.network_code, folder)
    # Gradient checkpointing is only useful in training.
    config = info.model.model_copy(update={"pretrained": "none", "gradient_checkpointing": False})
    with torch.random.fork_rng(devices=[]):
        network = build_model(config, len(info.findings))
    _load_weights(network, folder / weights, prefix)
    return network.float().eval().requires_grad_(False), info


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        UserError: the file is missing or corrupt, or holds non-finite values.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"{path} does not exist. Restore it (dvc checkout), or train again.")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a valid safetensors file ({error}). Restore it (dvc checkout), or train again. Pickled "
            "weights (.pt, .pth, .bin) are not supported, because loading them can run code."
        ) from None
    refuse_not_finite(tensors, f"{path}: ")
    return tensors


def _load_weights(network: Network, path: Path, prefix: str) -> None:
    """Load all tensors of `network` from a safetensors file, whose names and shapes must match exactly."""
    tensors = {prefix + name: tensor for name, tensor in read_weights(path).items()}
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    actual = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    mismatched = [name for name in {**expected, **actual} if expected.get(name) != actual.get(name)]
    if mismatched:
        name = mismatched[0]
        raise UserError(
            f"{path}: {len(mismatched)} of {len(expected)} tensors do not match the network of model.json, "
            f"such as {name}: "
            f"{expected.get(name, 'not in the network')} expected, {actual.get(name, 'not in the file')} found. "
            "Both files must come from the same training."
        )
    network.load_state_dict(tensors)
