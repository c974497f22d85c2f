"""How this process keeps the memory that it frees."""

import ctypes
import platform

# Parameters of glibc's mallopt: memory to keep at the end of the heap, to add to it at a time, and the size from
# which an allocation gets pages of its own.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, for its next allocations: for work in equal steps, with glibc.

    By default every large array (an activation, a decoded image) gets pages of its own, which go back to the system
    when it is freed, in every step. Mapping and clearing them anew takes a tenth of the time of a training step on a
    CPU, and a third of that of packing images from an archive. Each thread keeps what it has needed at most: peak
    memory stays the same with equal steps, and was a sixth higher with eight threads that pack images of all sizes.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for parameter, value in ((_MMAP_THRESHOLD, 1 << 30), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 << 20)):
        mallopt(parameter, value)
