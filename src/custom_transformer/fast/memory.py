"""The C library's allocator, told to keep what is freed for the next step."""

from __future__ import annotations

import ctypes
import functools

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


@functools.cache
def keep_freed_memory() -> None:
    """From here on, freed memory stays with this process, large blocks included, up to 2 GiB at the heap's end.

    By default glibc asks the system for every large block and hands it back when freed; the system clears each page
    anew when it is touched next, which for a training step's activations takes as long as a good part of its
    arithmetic. (`man 3 mallopt`; other C libraries have no such switch, or no such habit.)
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
