"""Sets the C library's memory allocation for XLA, on Linux CPUs.

XLA allocates the temporaries of every step in the C library and frees them. By default the freed
pages return to the kernel, which zeroes them before their next use. For a small model that costs
about as much as the arithmetic, so a command keeps them (`keep_freed_memory`). Large temporaries do
not fit again between what was allocated since: a process that keeps them holds several copies, and
zeroing them is a small share of their step (`suit`).
"""

import ctypes
import sys
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8
"""Parameters of glibc's mallopt(3)."""
LARGEST_KEPT = 2**29
"""Bytes of temporaries of a program up to which freed memory is kept."""
LARGE_BLOCK = 2**25
"""Bytes from which a block is large: the most that glibc allows."""
LARGE_BLOCKS = 2**16
"""Large blocks that return to the kernel at most: glibc's default."""


def keep_freed_memory() -> bool:
    """Set glibc to keep freed memory; return whether that succeeded.

    Call it before the process has a second thread: what that thread allocates makes an arena of its
    own, and large blocks of such threads return to the kernel whatever the parameters are.
    """
    return _set((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_ARENA_MAX, 1))


def suit(compiled: Any) -> Any:
    """Return a compiled program, for whose temporaries the process now allocates memory.

    After a program with more than LARGEST_KEPT bytes of them, large blocks return to the kernel
    when they are freed.
    """
    memory = compiled.memory_analysis()
    if memory is not None and memory.temp_size_in_bytes > LARGEST_KEPT:
        _set((M_MMAP_THRESHOLD, LARGE_BLOCK), (M_MMAP_MAX, LARGE_BLOCKS))
    return compiled


def _set(*parameters: tuple[int, int]) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False  # Another C library (musl): slower, with the same results.
    return all(mallopt(key, value) for key, value in parameters)
