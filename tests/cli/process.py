"""Commands in one of several processes: run by test_compress_processes.py and test_joined.py.

    python process.py PARTS compress PATH SOURCE --out=FOLDER/
    python process.py PARTS measure PATH ... -- recall PATH ...

Commands follow each other as if each were started by itself. Parts of stores, and shards of the
memories of a corpus, are small. The process is killed when it is about to write part (or shard)
number PARTS of its own, counted from 0; -1 is never.
"""

import functools
import os
import signal
import sys
from collections.abc import Callable

from memjax.checkpoints.store_folder import StoreFolder
from memjax.cli.main import main
from memjax.data import MemoryShards, memories
from memjax.inference import compression_parts

PART_BYTES = 1000
SHARD_TOKENS = 1024


def die_after(parts: int) -> None:
    """Ends this process in place of a later part."""
    left = [parts]

    def disturbed(folder: object, write: Callable[..., None], *part: object) -> None:
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        write(folder, *part)

    for kind in (StoreFolder, MemoryShards):
        kind.write = functools.partialmethod(disturbed, kind.write)


def commands(words: list[str]) -> list[list[str]]:
    """Words between those that are `--`."""
    if "--" not in words:
        return [words]
    at = words.index("--")
    return [words[:at], *commands(words[at + 1 :])]


if __name__ == "__main__":
    compression_parts.PART_BYTES, memories.SHARD_TOKENS = PART_BYTES, SHARD_TOKENS
    die_after(int(sys.argv[1]))
    for args in commands(sys.argv[2:]):
        status = main(args)
        if status:
            sys.exit(status)
