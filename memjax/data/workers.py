"""Processes that share the blocks of a corpus.

They are spawned, import neither JAX nor the program that started them, and end with it, however it
ends.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from os import _exit
from typing import Any

from memjax.data.blocks import Work, done_or_do
from memjax.data.packing import RowsError

Done = tuple[int, int, dict[str, Any], bool]
"""The number of the work, the number of its block, the block's record, and whether it was there
already.
"""


def run_blocks(works: Sequence[Work], workers: int) -> Iterator[Done]:
    """Process every block of every work, in any order, and yield each when it is done.

    The result does not depend on `workers`. With one worker or one block all is done in this
    process. Finished blocks stay when another block fails.

    Raises:
      CorpusError: a document is damaged.
      RowsError: an id is outside the vocabulary, or a process was killed.
      OSError: the disk refuses.
    """
    tasks = [
        (place, number) for place, work in enumerate(works) for number in range(len(work.blocks))
    ]
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
                futures: dict[Future, tuple[int, int]] = {
                    pool.submit(_task, *task): task for task in tasks
                }
            for future in as_completed(futures):
                yield *futures[future], *future.result()
        except BrokenProcessPool as error:
            raise RowsError(
                "a process that prepared data was killed, perhaps for want of memory. Run the same"
                f" command again, which resumes, with fewer processes (--workers, now {workers})"
            ) from error
        finally:
            # After an error the other processes stop within their blocks. They are waited for: they
            # write into a folder that the next call may empty.
            stop.set()
            pool.shutdown(cancel_futures=True)


_works: tuple[Work, ...] = ()
_stop: Any = None


def _begin(works: tuple[Work, ...], stop: Any) -> None:
    """Initialise a new process."""
    global _works, _stop
    _works, _stop = works, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent gets the signal too, and decides.
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    _exit(1)


def _task(place: int, number: int) -> tuple[dict[str, Any], bool]:
    return done_or_do(_works[place], number, stopped=_stop.is_set)


@contextlib.contextmanager
def _nameless_main() -> Iterator[None]:
    """Keep processes that start meanwhile from importing this one's main program.

    It may be a script without a guard, or use JAX.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
