"""Blocks of a corpus processed by Apache Beam: the counterpart of memjax/data/workers.py for many
machines (extra `beam`).

Beam's runner hands numbers of blocks to its workers. A worker writes the files and the record of a
block into the folder of the work, which all machines see under the same path. Nothing is returned:
a block that two workers process, or one after another, is written twice with the same bytes, and
each file appears whole.
"""

from __future__ import annotations

import functools
import logging
import threading
from typing import Any

from memjax.data.blocks import Work, done_or_do, record_file
from memjax.data.sources.base import CorpusError
from memjax.data.sources.streams import missing
from memjax.errors import MemjaxError
from memjax.files import write_text

_LOG = logging.getLogger("memjax")
TRIES = 3
"""Pipelines in a row in which a worker is killed and no block is finished."""
_ERRORS = "error-*.txt"


class LostWorkerError(MemjaxError):
    """Processes of the direct runner were killed again and again."""


def run_blocks_by_beam(work: Work, runner: Any = None, options: Any = None) -> None:
    """Process every block of a work; finished ones are only checked.

    Runners of clusters hand the blocks of a lost worker to another. The direct runner fails where
    one of its processes is killed; here another pipeline then does the rest.

    Args:
      work: the settings of all blocks.
      runner: a runner of Beam, or its name; None is that of the options, or else the direct runner.
      options: the `PipelineOptions`; None is those of Beam.

    Raises:
      CorpusError: an error of memjax in a block, such as a damaged document, or there is no Beam.
      LostWorkerError: TRIES pipelines in a row lost a worker and finished no block.
      Exception: any other error of Beam or of a block.
    """
    try:
        import apache_beam as beam
    except ImportError as error:
        raise missing("preparation by Apache Beam", "apache-beam") from error
    _fail_where_workers_are_killed()
    for file in work.folder.glob(_ERRORS):
        file.unlink()
    left, failures, done = _left(work), 0, False
    while not done:
        try:
            with beam.Pipeline(runner=runner, options=options) as pipeline:
                numbers = pipeline | beam.Create(list(range(len(work.blocks))))
                _ = numbers | beam.Reshuffle() | beam.Map(functools.partial(_process, work))
            done = True
        except LostWorkerError:
            before, left = left, _left(work)
            failures = failures + 1 if left == before else 1
            if failures == TRIES:
                raise
            _LOG.warning(
                "data: a process of Beam was killed. Another pipeline makes the %d of %d blocks"
                " that are left",
                left,
                len(work.blocks),
            )
        for file in sorted(work.folder.glob(_ERRORS)):
            raise CorpusError(file.read_text(encoding="utf-8"))


def _left(work: Work) -> int:
    return sum(not record_file(work, number).exists() for number in range(len(work.blocks)))


def _process(work: Work, number: int) -> None:
    """Process a block; an error of memjax is written beside it, as another try would not help."""
    try:
        done_or_do(work, number)
    except MemjaxError as error:
        write_text(work.folder / _ERRORS.replace("*", f"{number:05d}"), str(error))


@functools.cache
def _fail_where_workers_are_killed() -> None:
    """Make the direct runner raise LostWorkerError; Beam 2.77 waits for a killed process for ever.

    A class of Beam starts and watches one process. Another is registered in its place.
    """
    from apache_beam.portability import python_urns
    from apache_beam.runners.portability.fn_api_runner import worker_handlers

    @worker_handlers.WorkerHandler.register_environment(python_urns.SUBPROCESS_SDK, bytes)
    class Handler(worker_handlers.SubprocessSdkWorkerHandler):
        def start_worker(self) -> None:
            super().start_worker()
            threading.Thread(target=self.watch, daemon=True).start()

        def watch(self) -> None:
            self.worker_thread.join()
            # Nothing waits for a process that ended well.
            self.control_conn.abort(
                LostWorkerError(
                    "a process of Beam was killed, perhaps for want of memory, expected it to stay."
                    " Run again, which resumes, with fewer processes (direct_num_workers)"
                )
            )
