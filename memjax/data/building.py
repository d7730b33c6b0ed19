"""Folders that appear whole: built beside their place by one process at a time, and moved there when all is done."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def built(target: Path, worth_keeping: Callable[[Path], bool], report: Callable[[str], None]) -> Iterator[Path | None]:
    """A folder `.NAME.partial` beside `target` that becomes it when the block ends well; None where another process has made it meanwhile.

    A killed process leaves it, and the next one goes on with it. One that fails leaves it if it is `worth_keeping`.
    """
    partial = target.with_name(f".{target.name}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(partial, target, report):
        try:
            if target.exists() and any(target.iterdir()):
                yield None
                return
            _tidy(partial)
            yield partial
            _tidy(partial)
            partial.rename(target)
        finally:
            if partial.exists():
                _tidy(partial)
                if not worth_keeping(partial):
                    shutil.rmtree(partial, ignore_errors=True)


def _tidy(folder: Path) -> None:
    """Takes away what killed processes were writing."""
    for file in folder.rglob(".*.tmp"):
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: Path, target: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Makes the folder and holds its lock; the system lets go of it when the process ends, however it ends."""
    while True:
        folder.mkdir(exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                report(f"data: another process is making {target}; waiting for it")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Whoever held it has moved or removed it: then it is no longer the folder of this name.
            if _is(folder, descriptor):
                yield
                return
        finally:
            os.close(descriptor)


def _is(folder: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except FileNotFoundError:
        return False
