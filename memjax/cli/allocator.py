"""Keeps memory that a computation frees, on Linux CPUs.

XLA asks the C library for every step's temporaries and gives them back. By default that goes to the kernel and comes back as
pages to be zeroed, which costs about as much as the arithmetic of a small model. Told to keep what is freed, the library
hands the same pages out again.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Parameters of glibc's mallopt(3)."""


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory; returns whether it could. Call it before the first large allocation."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False  # Another C library (musl): slower, and right all the same.
    return all(mallopt(key, value) for key, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_ARENA_MAX, 1)))
