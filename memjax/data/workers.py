"""Processes that share the blocks of a corpus.

They are started anew (`spawn`), import neither JAX nor the program that started them, and end with it, however it ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from typing import Any

from memjax.data.blocks import Stopped, Work, done_or_do
from memjax.data.layouts import RowsError

Done = tuple[int, int, dict[str, Any], bool]
"""Which of the works, which block of it, what is known of the block, and whether it was there already."""


def run_blocks(works: Sequence[Work], workers: int) -> Iterator[Done]:
    """Sees to every block of every work, in any order, and gives each when it is done; the result does not depend on `workers`.

    With one worker or one block all is done in this process. What is finished stays when another block fails.

    Raises:
      CorpusError: a document is damaged.
      RowsError: an id is not of the vocabulary, or a process was killed.
      OSError: the disk refuses.
    """
    tasks = [(place, number) for place, work in enumerate(works) for number in range(len(work.blocks))]
    processes = min(workers, len(tasks))
    if processes <= 1:
        for place, number in tasks:
            yield place, number, *done_or_do(works[place], number, threads=workers)
        return
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(processes, context, _begin, (tuple(works), stop)) as pool:
        try:
            with _nameless_main():
                futures: dict[Future, tuple[int, int]] = {pool.submit(_task, *task): task for task in tasks}
            for future in as_completed(futures):
                yield *futures[future], *future.result()
        except BrokenProcessPool as error:
            raise RowsError(
                "a process that prepared data was killed, perhaps for want of memory; the same command goes on with what is done: give"
                f" fewer of them (--workers, now {workers})"
            ) from error
        finally:
            # Whatever ended this, the processes are not waited for until their blocks are done.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


_works: tuple[Work, ...] = ()
_stop: Any = None


def _begin(works: tuple[Work, ...], stop: Any) -> None:
    """First thing in a new process."""
    global _works, _stop
    _works, _stop = works, stop
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # The process that started this one is told as well, and says what is to be done.
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _task(place: int, number: int) -> tuple[dict[str, Any], bool]:
    return done_or_do(_works[place], number, stopped=_stop.is_set)


@contextlib.contextmanager
def _nameless_main() -> Iterator[None]:
    """Processes that start meanwhile do not import this one's main program, which may be a script without a guard or use JAX."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


__all__ = ["Done", "Stopped", "run_blocks"]
