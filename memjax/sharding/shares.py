"""Work that processes divide: each computes its own share, and all results meet on the host.

No program of the work spans processes, so one that dies stops no device of another, and results do
not depend on the number of processes. Work is divided in a `sharing` block alone: elsewhere every
process does what it is given, as the first process does when it alone writes a report.
"""

import contextlib
import contextvars
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from memjax.progress import track
from memjax.sharding.processes import barrier

T = TypeVar("T")
_AT_ONCE = 1 << 26
"""Bytes of each process that are sent at once."""
_SHARING: contextvars.ContextVar[bool] = contextvars.ContextVar("sharing", default=False)


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """Divide work between all processes while the block runs; all of them must run the same."""
    token = _SHARING.set(True)
    try:
        yield
    finally:
        _SHARING.reset(token)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let each process do what it is given while the block runs, inside of `sharing` too."""
    token = _SHARING.set(False)
    try:
        yield
    finally:
        _SHARING.reset(token)


def place() -> tuple[int, int]:
    """Return the number of this process and the number of processes that divide work."""
    return (jax.process_index(), jax.process_count()) if _SHARING.get() else (0, 1)


def share(count: int) -> range:
    """Return which of `count` rows are this process's own; those of a process are consecutive."""
    number, processes = place()
    return range(count * number // processes, count * (number + 1) // processes)


def own(items: Sequence[T]) -> Sequence[T]:
    """Return the items of this process: every n-th of them, where n processes divide them."""
    number, processes = place()
    return items[number::processes]


def divide(tasks: Sequence[Callable[[], T]], name: str = "") -> list[T]:
    """Return the results of all tasks, in their order, on each process.

    Args:
      tasks: functions, each of which one process calls and works on alone.
      name: names a progress bar of this process's tasks; empty for none.
    """
    mine, (_, processes) = own(tasks), place()
    with alone():
        found = [task() for task in (track(mine, name) if name else mine)]
    results = gather(found)
    return [results[i % processes][i // processes] for i in range(len(tasks))]


def gather(value: T) -> list[T]:
    """Return the values of all processes, in their order, on each of them.

    Args:
      value: any value of this process that can be pickled, such as a tree of NumPy arrays, whose
        sizes may differ between processes; bits and dtypes stay as they are.
    """
    if place()[1] == 1:
        return [value]
    data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    # Whole numbers of 64 bits would lose half of them.
    sizes = [int.from_bytes(size, "little") for size in _all_bytes(len(data).to_bytes(8, "little"))]
    parts: list[list[bytes]] = [[] for _ in sizes]
    for start in range(0, max(sizes), _AT_ONCE):
        size = min(_AT_ONCE, max(sizes) - start)
        for part, found in zip(
            parts, _all_bytes(data[start : start + size].ljust(size, b"\0")), strict=True
        ):
            part.append(found)
    return [pickle.loads(b"".join(part)[:size]) for part, size in zip(parts, sizes, strict=True)]


def _all_bytes(data: bytes) -> list[bytes]:
    """Return the bytes of every process, as many of each."""
    found = multihost_utils.process_allgather(np.frombuffer(data, np.uint8))
    return [row.tobytes() for row in np.asarray(found)]


def leads() -> bool:
    """Return whether this process does what is done once: the first of those that divide work."""
    return place()[0] == 0


def wait(name: str) -> None:
    """Wait until all processes that divide work have reached this call."""
    if place()[1] > 1:
        barrier(name)
