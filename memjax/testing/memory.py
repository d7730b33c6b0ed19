"""The anonymous resident memory of this process: what it allocated, without mapped files."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

_SECONDS = 0.02
"""Time between two samples."""


def anonymous() -> int:
    """Return the bytes of anonymous memory that are resident (Linux)."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/smaps_rollup: no line Anonymous, expected one of Linux 4.14 or later")


@contextlib.contextmanager
def rise() -> Iterator[list[int]]:
    """Yield a list of one number: bytes by which anonymous memory has risen at most in the block.

    A thread takes samples until the block ends.
    """
    before, highest, done = anonymous(), [0], threading.Event()

    def sample() -> None:
        while not done.wait(_SECONDS):
            highest[0] = max(highest[0], anonymous() - before)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield highest
    finally:
        done.set()
        thread.join()
        highest[0] = max(highest[0], anonymous() - before)
