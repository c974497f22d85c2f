"""Chest X-ray classification with long-tailed findings: data, losses, training, evaluation, reporting."""

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

try:
    __version__ = version("ral")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"

# Imported when first used, so that `import ral` is light: name -> module.
_LAZY = {"load_model": "ral.inference.model"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'ral' has no attribute {name!r}")
