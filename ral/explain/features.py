"""The network split in two: images to the backbone's last feature map, and feature map to logits; earlier maps."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ral.errors import UserError
from ral.models import Network, positions


class NoMapError(UserError):
    """The backbone has no usable last feature map."""


def feature_map(network: Network, images: Tensor) -> Tensor:
    """The backbone's last feature map before pooling, in the backbone's own layout.

    Args:
        network: in eval mode.
        images: normalised, float32 [images, 1, height, width].

    Raises:
        NoMapError: the backbone has no such feature map, or several.
    """
    if network.channels > 1:
        images = images.expand(-1, network.channels, -1, -1)
    backbone = network.backbone
    name = type(backbone).__name__
    if not (hasattr(backbone, "forward_features") and hasattr(backbone, "forward_head")):
        raise NoMapError(f"explain: {name} has no feature map. Use another model.backbone.")
    features = backbone.forward_features(images)
    if not isinstance(features, Tensor) or features.ndim not in (3, 4):
        raise NoMapError(f"explain: {name} has more than one last feature map. Use another model.backbone.")
    return features


def logits_of(network: Network, features: Tensor) -> Tensor:
    """Raw logits [images, findings] from the output of `feature_map`."""
    output: Tensor = network.backbone.forward_head(features)
    if network.head is not None:
        output = network.head(positions(network.backbone, output))
    return output


def pooled(network: Network, features: Tensor) -> Tensor:
    """One vector per image [images, width]: the input of a linear classifier; for other heads, the mean over
    positions.
    """
    if network.head is None:
        vectors: Tensor = network.backbone.forward_head(features, pre_logits=True)
        return vectors
    return positions(network.backbone, network.backbone.forward_head(features)).mean(dim=1)


def grid(network: Network, features: Tensor) -> tuple[int, int]:
    """Height and width of a feature map, in positions.

    Raises:
        NoMapError: the positions do not form a grid.
    """
    if features.ndim == 4:
        channels_last = getattr(network.backbone, "output_fmt", "NCHW") == "NHWC"
        height, width = features.shape[1:3] if channels_last else features.shape[2:4]
        return int(height), int(width)
    count = positions(network.backbone, features).shape[1]
    side = getattr(getattr(network.backbone, "patch_embed", None), "grid_size", None)
    if side is None or side[0] * side[1] != count:
        side = (round(count**0.5),) * 2  # images are square
    if side[0] * side[1] != count:
        raise NoMapError(
            f"explain: the {count} positions of {type(network.backbone).__name__} do not form a grid. "
            "Use another model.backbone."
        )
    return int(side[0]), int(side[1])


def earlier_layer(network: Network, images: Tensor, smallest: int) -> str | None:
    """The last layer whose feature map has at least `smallest` rows and columns, of those that timm lists; None if
    there is none.

    Args:
        network: in eval mode.
        images: any images, [images, 1, height, width].
        smallest: required number of rows and of columns.
    """
    suitable = [name for name, sides in layers(network, images).items() if min(sides) >= smallest]
    return suitable[-1] if suitable else None


def layers(network: Network, images: Tensor) -> dict[str, tuple[int, int]]:
    """Rows and columns of the feature map of each layer that timm lists (`feature_info`), from the first to the last.

    Args:
        network: in eval mode.
        images: any images, [images, 1, height, width].
    """
    listed = getattr(network.backbone, "feature_info", None) or []
    channels = {part["module"]: part["num_chs"] for part in listed if part.get("module")}
    found: dict[str, tuple[int, int]] = {}

    def look(name: str) -> Callable[[Tensor], None]:
        def seen(output: Tensor) -> None:
            if output.ndim == 4 and positions(network.backbone, output).shape[2] == channels[name]:
                found[name] = grid(network, output)

        return seen

    modules = dict(network.backbone.named_modules())
    with watched({modules[name]: look(name) for name in channels if name in modules}):
        network(images)
    return found


@contextmanager
def watched(watchers: dict[nn.Module, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """Call a function with the output of each module that runs inside the block; its result replaces the output."""

    def hook(watcher: Callable[[Tensor], Tensor | None]) -> Callable[..., Tensor | None]:
        return lambda _module, _inputs, output: watcher(output) if isinstance(output, Tensor) else None

    handles: list[Any] = [module.register_forward_hook(hook(watcher)) for module, watcher in watchers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
