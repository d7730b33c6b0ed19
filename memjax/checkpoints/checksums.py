"""Checksums of the files of a checkpoint, which Orbax keeps for few of its own."""

import concurrent.futures
import functools
import glob
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from memjax.errors import MemjaxError
from memjax.files import listing, read_json, sha256, write_object

CHECKSUMS = "checksums.json"
"""Holds the sha256 of the files of all items of a checkpoint, by their paths in it."""

SEALED = "sealed"
"""Key of a checkpoint's metadata: whether checksums were written."""


def seal(path: epath.Path) -> None:
    """Write the checksums of the items of a checkpoint that is about to be finished.

    Files beside them are marks that Orbax writes when it finishes.
    """
    folders = (item for item in listing(path) if item.is_dir())
    names = [str(file.relative_to(path)) for folder in folders for file in _files(folder)]
    write_object(path / CHECKSUMS, json.dumps({"sha256": _sums(path, names)}, indent=1).encode())


def verify(
    path: epath.Path, only: tuple[str, ...] = ("",), reader: int = 0, readers: int = 1
) -> None:
    """Read files of a checkpoint and compare their checksums.

    Args:
      path: the checkpoint; those of earlier versions have no checksums, which is logged.
      only: beginnings of the paths of files that are read; by default all are.
      reader: number of this process among those that read, each its share: what it wrote.
      readers: number of processes that read.

    Raises:
      ValueError, OSError, ...: a file is not what was written; the message names it.
    """
    if not (path / CHECKSUMS).exists():
        if read_json(path / "meta" / "metadata", MemjaxError).get(SEALED):
            raise ValueError(f"{CHECKSUMS} is missing")
        if reader == 0:
            _warn_unverified(path)
        return
    expected = read_json(path / CHECKSUMS, MemjaxError, {"sha256": {str: str}})["sha256"]
    names = [name for name in sorted(expected) if name.startswith(only)]
    for name, found in _sums(path, [x for x in names if _writer(x) % readers == reader]).items():
        if found != expected[name]:
            raise ValueError(f"{name}: sha256 {found[:16]}, expected {expected[name][:16]}")


@functools.cache
def _warn_unverified(path: epath.Path) -> None:
    """Warn, once per checkpoint and process, that its files may not be what was written."""
    logging.getLogger("memjax").warning(
        "%s: no %s (an earlier memjax wrote it), expected one; it is used but not verified. Train"
        " on to save one that is",
        path,
        CHECKSUMS,
    )


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    """Yield the files below a folder; `walk` returns paths in a bucket without `gs://`."""
    for path in listing(folder):
        if not path.is_dir():
            yield path
        elif path != folder:  # An empty object may stand for the folder.
            yield from _files(path)


def _writer(name: str) -> int:
    """Return the number of the process that wrote a file."""
    found = re.search(r"ocdbt\.process_(\d+)/", name)
    return int(found[1]) if found else 0


def _sums(path: epath.Path, names: list[str]) -> dict[str, str]:
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(sha256, [path / name for name in names]), strict=True))


def _glob(self: Any, pattern: str) -> Iterator[epath.Path]:
    """Yield the paths in a folder that match, where etils matches the folder's own name as well.

    Orbax finds the files of a save in this way: of a workdir `run[1]` it would find none.
    """
    return _match(type(self)(glob.escape(str(self))), pattern)


_match = type(epath.Path()).glob
type(epath.Path()).glob = _glob  # type: ignore[method-assign]
