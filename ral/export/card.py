"""The README.md of an export: the model card, by huggingface_hub's classes, and how to use the folder."""

import re
from typing import Any

from ral.errors import UserError
from ral.inference.export_folder import Kind
from ral.wording import escape

# Viewers that do not know front matter render it: no Markdown or HTML in it.
_SPECIAL = re.compile(r"[^\w .,:;%()+–-]|_")

_OPEN = {
    "timm": """\
import timm
model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
logits = model(transform(image.convert("MODE"))[None]).detach()  # image: PIL.Image""",
    "onnx": """\
import numpy, onnxruntime
session = onnxruntime.InferenceSession("FOLDER/model.onnx")
images = (pixels.astype(numpy.float32) - MEAN) / DEVIATION  # pixels: uint8 [batch, 1, SIZE, SIZE]
logits, = session.run(["logits"], {"images": images})""",
    "torch": """\
from pathlib import Path
from ral.inference.pt2 import read  # torch.export.load would unpickle what a file asks for
logits = read(Path("FOLDER/model.pt2"))((pixels.float() - MEAN) / DEVIATION)  # pixels: uint8 [batch, 1, SIZE, SIZE]""",
}

_PREDICT = """\
import ral
results = ral.load_model("FOLDER").predict(["chest.png", "scan.dcm"])"""

_CALIBRATE = """\
import json, numpy, pandas
from ral.evaluation.calibration_io import apply
export = json.load(open("FOLDER/export.json"))
table = pandas.DataFrame(numpy.asarray(logits), columns=export["findings"]).assign(image_id=ids)
probabilities, decisions = apply(json.load(open("FOLDER/calibration.json")), table)"""


def export_card(text: str, kind: Kind, values: dict[str, str]) -> str:
    """Render the card.

    Args:
        text: the model card of the run.
        kind: format of the export; only timm's is named as the library.
        values: placeholders of the code examples (SIZE, MEAN, …) and their values.

    Raises:
        UserError: the front matter of the card is damaged.
    """
    from huggingface_hub import ModelCard

    try:
        card = ModelCard(text)
    except Exception as error:  # noqa: BLE001 - errors of PyYAML, which the project does not import
        raise UserError(f"The front matter of the model card is damaged: {error}") from None
    data: Any = card.data
    data.library_name = "timm" if kind == "timm" else None
    if data.model_name:
        data.model_name = _SPECIAL.sub(" ", data.model_name)
    parts = [
        "## How to use this folder",
        "The package `ral` prepares images as in the training, and gives calibrated probabilities and decisions:",
        _code(_PREDICT, values),
        "Without it, the outputs are raw logits:" if kind != "torch" else "The outputs are raw logits:",
        _code(_OPEN[kind], values),
        "Calibrated probabilities and decisions at the released thresholds of such logits, with the findings and "
        "preprocessing in export.json:",
        _code(_CALIBRATE, values),
        f"Images must be prepared as in the training: {escape(values['PREPARATION'])}.",
    ]
    card.text = card.text.rstrip() + "\n\n" + "\n\n".join(parts) + "\n"
    return str(card)


def _code(text: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        text = re.sub(rf"\b{name}\b", value, text)
    return f"```python\n{text}\n```"
