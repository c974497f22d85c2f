"""Heat map of a finding for one image, by the methods of the gallery."""

import numpy as np
import torch
from numpy.typing import NDArray

from ral.errors import UserError
from ral.explain.saliency import choose_method, enlarge, heat_maps
from ral.inference.scoring import Predictor, exact_math, one_thread
from ral.models import Network
from ral.models.inputs import normalised

NO_HEAT = (
    "An export to ONNX or torch.export has no heat maps: they need the model that it was made from, or its export to "
    "timm."
)


def heat_map(predictor: Predictor, pixels: np.ndarray, finding: int) -> NDArray[np.float32]:
    """Heat map of the first model: what the network used, not where disease is.

    Args:
        predictor: the model.
        pixels: uint8 [size, size].
        finding: index of the output.

    Returns:
        float32 [size, size] from 0 to 1; 0 everywhere if nothing raises the logit.

    Raises:
        UserError: the network has no heat maps of at least 7 × 7 positions, or is an export to ONNX or torch.export.
    """
    released = predictor.models[0]
    network = released.network
    if not isinstance(network, Network):
        raise UserError(NO_HEAT)
    images = normalised(torch.from_numpy(pixels[None].copy()).to(predictor.device), released.info)
    with one_thread(), exact_math(predictor.device):
        choice = choose_method(network, "auto", images)
        if choice.method is None:
            raise UserError(f"This network has no heat maps: {choice.reason}.")
        coarse = heat_maps(network, images, finding, choice)
    return enlarge(coarse, released.preparation.size)[0].cpu().numpy()
