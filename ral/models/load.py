"""A trained network, from the folder that the step train wrote. Nothing is unpickled, nothing is downloaded."""

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from ral.config.base import explain
from ral.config.model import ModelConfig
from ral.errors import UserError
from ral.files import read_json
from ral.models import Network, build_model
from ral.models.pretrained import refuse_not_finite

# What model.json must say for the weights to be of use.
FACTS = ("model", "findings", "size", "pixel_mean", "pixel_deviation", "phantom")


def load_model(folder: Path, weights: str = "model.safetensors") -> tuple[Network, dict[str, Any]]:
    """Build the network of `folder`/model.json and give it the weights beside it.

    Pretrained weights are not asked for again: the file holds every tensor. torch's random state is left as it was.

    Args:
        folder: what the step train wrote.
        weights: file of weights in it.

    Returns:
        The network on the CPU, float32, in eval mode without gradients of its weights; and the content of model.json,
        where `findings` names the outputs in order, `size` is the images' side, and `pixel_mean` and `pixel_deviation`
        normalise them (`ral.inference.score.normalised`).

    Raises:
        UserError: a file is missing or damaged, or the weights are of another network or not finite.
    """
    facts = _facts(folder / "model.json")
    try:
        # Gradient checkpointing is for training; it would run parts of the network twice.
        config = ModelConfig.model_validate(facts["model"]).model_copy(
            update={"pretrained": "none", "gradient_checkpointing": False}
        )
    except ValidationError as error:
        raise UserError(explain(error, ModelConfig, folder / "model.json")) from None
    with torch.random.fork_rng(devices=[]):
        network = build_model(config, len(facts["findings"]))
    _fill(network, folder / weights)
    return network.float().eval().requires_grad_(False), facts


def _facts(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(
            f"{path} does not exist. Train first (dvc repro train), or name the folder that the step train wrote."
        )
    try:
        facts = read_json(path)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}). Train again, or restore it (dvc checkout).") from None
    missing = [name for name in FACTS if not isinstance(facts, dict) or name not in facts]
    if missing:
        raise UserError(f"{path} does not say {', '.join(missing)}: it is not the model.json of a training.")
    return facts


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        UserError: it is missing or damaged, or holds a number that is not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"{path} does not exist. Train again, or restore it (dvc checkout).")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}). Train again, or restore it (dvc checkout); pickled "
            "weights (.pt, .pth, .bin) are not loaded, since opening one can run code."
        ) from None
    refuse_not_finite(tensors, f"{path}: ")
    return tensors


def _fill(network: Network, path: Path) -> None:
    """Load every tensor of `network` from a safetensors file that holds exactly these."""
    tensors = read_weights(path)
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{path}: {len(wrong)} of {len(expected)} tensors do not fit the network of model.json, such as {name}: "
            f"{expected.get(name, 'not in the network')} expected, {found.get(name, 'not in the file')} found. "
            "Both files must come from one training."
        )
    network.load_state_dict(tensors)
