"""ISA-L's zlib, of the extra `data`: unpacks several times as fast as Python's own, to the same bytes."""

import zlib
from typing import Any

import numpy as np


def _isal_zlib() -> Any:
    """The module; None without the extra: then Python and Pillow unpack."""
    try:
        from isal import isal_zlib
    except ImportError:
        return None
    return isal_zlib


isal_zlib = _isal_zlib()

# What a damaged stream raises.
ERRORS: tuple[type[Exception], ...] = (zlib.error, *(() if isal_zlib is None else (isal_zlib.error,)))

_NUMBERS = np.ones(64, np.float32)


def gzip_unpacker() -> Any:
    """An object like `zlib.decompressobj` for one gzip member, whose checksum it verifies."""
    return (isal_zlib or zlib).decompressobj(wbits=31)


def free_vector_registers() -> None:
    """To be called after ISA-L has unpacked something.

    It leaves the wide vector registers in use, and then code for narrow ones, as in scipy's sparse products, takes
    three times as long. An addition in numpy ends with the instruction that frees them.
    """
    np.add(_NUMBERS, _NUMBERS)
