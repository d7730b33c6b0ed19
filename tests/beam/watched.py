"""A corpus that records which processes read it and kills one; workers of Beam import it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memjax.data.sources.base import Block, Document
from memjax.data.sources.files import FilesSource

BLOCK = 3
"""The number of the block at which a process is killed."""


class WatchedSource(FilesSource):
    """One file. Each process that reads a block leaves a file of its number in `folder`.

    Where there is a file `kill`, the first process that reads block BLOCK removes it and is killed.
    """

    def __init__(self, corpus: str, folder: Path, block_bytes: int, *args: Any):
        super().__init__(corpus, [Path(corpus)], *args)
        self._folder, self._block = folder, self.blocks(block_bytes)[BLOCK]

    def read(self, block: Block) -> Iterator[Document]:
        (self._folder / str(os.getpid())).touch()
        for number, document in enumerate(super().read(block)):
            kill = self._folder / "kill"
            if block == self._block and number == 2 and kill.exists():
                kill.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            yield document
