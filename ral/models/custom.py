"""The user's own network: a class in a file of the project, built as timm builds its models, and checked once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ral.config.model import ModelConfig
from ral.errors import UserError
from ral.models.pretrained import read_weights
from ral.user_code import failure, is_class_path, load_class, source_files

KEY = "model.backbone"

# Images of the small batch.
IMAGES = 2


def build_custom(config: ModelConfig, findings: int) -> tuple[nn.Module, str | None]:
    """The network of the class `model.backbone`, with one output per finding.

    The class is called with in_chans, num_classes and `model.options`; and with drop_path_rate, if `model.drop_path` is
    not 0.

    Args:
        config: the section model.
        findings: number of outputs.

    Returns:
        The network, and the SHA-256 of the file of pretrained weights or None.

    Raises:
        UserError: the class cannot be imported or built, has no get_classifier, or the weights do not fit.
    """
    kind = load_class(KEY, config.backbone, nn.Module)
    arguments: dict[str, Any] = {**config.options, "in_chans": config.channels, "num_classes": findings}
    if config.drop_path:
        arguments["drop_path_rate"] = config.drop_path
    try:
        backbone = kind(**arguments)
    except Exception as error:
        raise UserError(
            f"{KEY} and model.options: {config.backbone} cannot be built with {arguments}: {failure(error)}"
        ) from error
    classifier = getattr(backbone, "get_classifier", lambda: None)()
    if not isinstance(classifier, nn.Module) or not any(True for _ in classifier.parameters()):
        raise UserError(
            f"{KEY}: {config.backbone} needs a method get_classifier() that returns its last layer, a module with the "
            "outputs of the findings (docs/own_loss_or_network.md)."
        )
    if config.pretrained == "none":
        return backbone, None
    return backbone, _load(backbone, classifier, Path(config.pretrained))


def _load(backbone: nn.Module, classifier: nn.Module, path: Path) -> str:
    """Load all tensors but those of the classifier, which is initialised randomly; returns the file's SHA-256."""
    if not path.is_file():
        raise UserError(f"model.pretrained: no such file: {path}.")
    tensors, digest = read_weights(path)
    own = {id(tensor) for tensor in (*classifier.parameters(), *classifier.buffers())}
    state = backbone.state_dict(keep_vars=True)
    needed = {name: tensor for name, tensor in state.items() if id(tensor) not in own}
    for name, tensor in needed.items():
        if name not in tensors or tensors[name].shape != tensor.shape:
            has = tuple(tensors[name].shape) if name in tensors else "none of that name"
            raise UserError(
                f"model.pretrained: {path} does not fit {type(backbone).__name__}: {name} needs a tensor of shape "
                f"{tuple(tensor.shape)}, and the file has {has}."
            )
    backbone.load_state_dict({name: tensors[name] for name in needed}, strict=False)
    return digest


def check_network(network: nn.Module, config: ModelConfig, findings: int, size: int) -> None:
    """Check the output of the user's own network on a small batch; other networks are not checked.

    Args:
        network: maps [images, 1, size, size] to logits; its mode is kept.
        config: the section model.
        findings: number of outputs.
        size: height and width of the prepared images.

    Raises:
        UserError: it fails, or its output is not one finite logit per image and finding.
    """
    if not is_class_path(config.backbone):
        return
    training = network.training
    network.eval()  # the statistics of BatchNorm stay
    images = torch.linspace(-2, 2, IMAGES * size * size).reshape(IMAGES, 1, size, size)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = network(images)
    except Exception as error:
        raise UserError(
            f"{KEY}: {config.backbone} fails on {IMAGES} images of {size} × {size} pixels: {failure(error)}"
        ) from error
    finally:
        network.train(training)
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if shape != (IMAGES, findings):
        raise UserError(
            f"{KEY}: {config.backbone} returns {shape} for {IMAGES} images, instead of logits of shape "
            f"{(IMAGES, findings)}: one per image and finding (num_classes = {findings})."
        )
    if not torch.isfinite(output).all():
        raise UserError(
            f"{KEY}: {config.backbone} returns values that are not finite for {IMAGES} images with pixels between "
            "-2 and 2."
        )


def require_same_code(backbone: str, trained: Mapping[str, str], folder: Path) -> None:
    """Check that the project still has the code of a model's network.

    Code is never taken from a model's folder or a release's bundle.

    Args:
        backbone: model.backbone of the training.
        trained: the files of the network then, by path -> SHA-256.
        folder: of the model, for the message.

    Raises:
        UserError: the network is the user's own class, whose files are not those of the training.
    """
    if not is_class_path(backbone):
        return
    names = ", ".join(trained) or backbone
    advice = (
        f"The network of {folder} is your own class {backbone}. A model has weights only; its code must be in this "
        f"project, unchanged since the training ({names}). Check out the commit of the training (`commit` in "
        "bundle.json or in runs/<id>/run.json), or restore these files. Keep the files of a released network as they "
        "are: write a new network into a new file."
    )
    try:
        present = source_files(KEY, backbone)
    except UserError as error:
        raise UserError(f"{error} {advice}") from None
    changed = [name for name in sorted({**trained, **present}) if trained.get(name) != present.get(name)]
    if changed:
        raise UserError(f"{', '.join(changed)}: not the code that this model was trained with. {advice}")
