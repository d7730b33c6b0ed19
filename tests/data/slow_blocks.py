"""For processes of tests that prepare data: some blocks are done, and others never are."""

import os
import sys
import time

from memjax.config import Data
from memjax.data import blocks, prepare, workers

DONE = 2


def stuck(place: int, number: int):
    """In a worker process: the first two blocks as ever; of the others something half is
    written."""
    assert "jax" not in sys.modules, "a worker imported JAX"
    if number < DONE:
        return _task(place, number)
    work = workers._works[place]
    (work.folder / f".half-{number}.{os.getpid()}.tmp").write_bytes(b"half")
    time.sleep(100)
    raise AssertionError


def killed(place: int, number: int):
    """In a worker process: the first two blocks as ever, then it is killed."""
    if number >= DONE:
        os.kill(os.getpid(), 9)
    return _task(place, number)


_task = workers._task


def main(corpus: str, folder: str) -> None:
    """Prepares data and is stuck."""
    blocks.BLOCK_BYTES = 8000
    workers._task = stuck
    prepare(
        Data(corpus=corpus, vocab_size=320, sequence_length=32, validation_share=0.25),
        folder,
        print,
        workers=2,
    )
