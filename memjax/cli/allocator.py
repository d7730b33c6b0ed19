"""Keeps the memory that a computation frees, on Linux CPUs.

XLA allocates the temporaries of every step in the C library and frees them. By default the freed
pages return to the kernel, which zeroes them before their next use. For a small model that costs
about as much as the arithmetic. With these parameters the library reuses the pages.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Parameters of glibc's mallopt(3)."""


def keep_freed_memory() -> bool:
    """Set glibc to keep freed memory; return whether that succeeded.

    Call it before the process has a second thread: what that thread allocates makes an arena of its
    own, and large blocks of such threads return to the kernel whatever the parameters are.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False  # Another C library (musl): slower, with the same results.
    return all(
        mallopt(key, value)
        for key, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_ARENA_MAX, 1))
    )
