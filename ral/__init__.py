"""Chest X-ray classification with long-tailed findings: data, losses, training, evaluation, reporting."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ral")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"
