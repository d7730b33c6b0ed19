"""Paths on this machine and in buckets (gs://, s3://, az://), distinguished in one place.

An answer of a bucket may be lost or refused for a moment. Whole objects are read and written again
before that is an error, of one line as those of a disk.
"""

import contextlib
import errno
import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from etils import epath

BUCKETS = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}
"""From the scheme of a bucket's path to the package that reads and writes it."""
PATIENCE = (0.1, 0.5, 2.0)
"""Seconds before the second and each further try."""
_FINAL = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError)
"""Answers that another try would not change."""

Result = TypeVar("Result")


def is_remote(path: str | os.PathLike) -> bool:
    """Return whether a path is an address, as of a bucket."""
    return "://" in os.fspath(path)


def on_this_machine(path: str | os.PathLike) -> Path:
    """Return the folder here of what is not kept in a bucket: BUCKET/FOLDER of gs://BUCKET/FOLDER.

    Another path stays what it is; `~` is the folder of its user.
    """
    return Path(os.fspath(path).partition("://")[2] or path).expanduser()


def absolute(path: str | os.PathLike, error: type[ValueError]) -> epath.Path:
    """Return the absolute path of a file or folder on disk or in a bucket.

    Raises:
      error: it is an address of another kind, or what reads the bucket is not installed.
    """
    if is_remote(path):
        package = BUCKETS.get(os.fspath(path).partition("://")[0], "")
        if not package:
            raise error(f"{path}: expected a folder on this machine, or gs://BUCKET/FOLDER")
        if importlib.util.find_spec(package) is None:
            raise error(
                f"{path}: buckets are read and written by the package {package}; pip install"
                f" {package}"
            )
    found = epath.Path(path)
    # A bucket's path counts as absolute, and yet `absolute()` would put the working directory
    # before it.
    return found if found.is_absolute() else found.absolute()


def listing(folder: epath.Path) -> list[epath.Path]:
    """Return the paths in a folder on disk or in a bucket; none if there is no folder.

    Raises:
      OSError: the bucket or the disk refuses.
    """
    return retried(folder, lambda: list(folder.iterdir()) if folder.is_dir() else [])


def read_object(path: str | os.PathLike) -> bytes:
    """Return the contents of an object of a bucket.

    Raises:
      OSError: it is absent, or the bucket refuses.
    """
    return retried(path, epath.Path(path).read_bytes)


def write_object(path: str | os.PathLike, content: bytes) -> None:
    """Write an object of a bucket, which appears whole; a file is written in place.

    Raises:
      OSError: the bucket or the disk refuses.
    """
    retried(path, lambda: epath.Path(path).write_bytes(content))


def check_bucket(folder: str | os.PathLike) -> None:
    """Check that a folder of a bucket can be written, before work whose result it is.

    Raises:
      OSError: the bucket refuses.
    """
    probe = epath.Path(folder) / ".memjax-probe"
    write_object(probe, b"")
    with contextlib.suppress(FileNotFoundError):
        retried(probe, probe.unlink)


def retried(path: str | os.PathLike, call: Callable[[], Result]) -> Result:
    """Return the result of a call about `path`, which is made again where a bucket refuses.

    Raises:
      OSError: the bucket refuses still; the error names `path`.
    """
    if not is_remote(path):
        return call()
    for patience in (*PATIENCE, None):
        try:
            return call()
        except _FINAL:
            raise
        except Exception as error:  # Packages for buckets have classes of their own.
            if patience is None:
                reason = str(error).partition("\n")[0] or type(error).__name__
                raise OSError(errno.ETIMEDOUT, reason, os.fspath(path)) from error
            time.sleep(patience)
    raise AssertionError("unreachable")
