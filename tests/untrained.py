"""A project folder as after a run, with a small network of random weights: made in a second, unlike a training."""

import json
from pathlib import Path
from typing import Any

import torch
from conftest import ROOT
from safetensors.torch import save_file

from ral.config.model import ModelConfig
from ral.models import build_model

FINDINGS = ["Effusion", "Hernia", "Mass"]
SIZE = 64

CARD = """\
---
license: other
library_name: timm
tags:
- chest-x-ray
model-index:
- name: 'Our <b>model</b>'
  results:
  - task:
      type: image-classification
      name: Findings
    dataset:
      type: nih
      name: NIH
      split: test
    metrics:
    - type: macro_ap
      name: Macro AP
      value: 0.5
---

# Our model

**Research software, not a medical device.**
"""

# As evaluate writes it, with one finding that could not be calibrated.
CALIBRATION = {
    "data": "images",
    "findings": {
        "Effusion": {
            "kind": "beta",
            "numbers": [1.0, 1.0, 0.0],
            "knots": [],
            "thresholds": {"max_f1": 0.5, "sensitivity": 0.3, "cost": 0.4},
        },
        "Hernia": None,
        "Mass": {
            "kind": "beta",
            "numbers": [1.0, 1.0, -1.0],
            "knots": [],
            "thresholds": {"max_f1": 0.2, "sensitivity": 0.1, "cost": 0.1},
        },
    },
    "format": 1,
    "rule": "max_f1",
    "version": "0123456789ab",
}


def write_project(folder: Path, fit: str = "stretch", **model: Any) -> Path:
    """Write models/, reports/ and params.yaml of a project whose network has the given config; returns the folder."""
    (folder / "models").mkdir(parents=True)
    (folder / "reports").mkdir()
    torch.manual_seed(1)
    config = ModelConfig.model_validate({"backbone": "test_resnet", **model})
    network = build_model(config, len(FINDINGS))
    # As after a training: logits differ between images, and an export that forgets the statistics of BatchNorm
    # is found. A network as initialised gives nearly the same logits for all.
    for parameter in network.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape))
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.1 * torch.randn(buffer.shape))
        elif name.endswith("running_var"):
            buffer.copy_(0.2 + torch.rand(buffer.shape))
    save_file(network.state_dict(), folder / "models/model.safetensors")
    metadata = {
        "model": config.model_dump(),
        "findings": FINDINGS,
        "size": SIZE,
        "pixel_mean": 122.937111,
        "pixel_deviation": 56.010576,
        "phantom": False,
    }
    (folder / "models/model.json").write_text(json.dumps(metadata))
    (folder / "reports/calibration.json").write_text(json.dumps(CALIBRATION))
    (folder / "reports/model_card.md").write_text(CARD)
    params = (ROOT / "params.yaml").read_text()
    changed = params.replace("  fit: stretch", f"  fit: {fit}")
    assert f"  fit: {fit}" in changed
    assert f"  size: {SIZE}" in changed
    (folder / "params.yaml").write_text(changed)
    return folder
