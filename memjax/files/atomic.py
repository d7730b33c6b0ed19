"""Files and folders that appear whole, and locks.

Contents are written under a hidden name `.NAME.*.tmp` beside their place and then renamed. A killed
process leaves the old contents, and perhaps the hidden one.
"""

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from memjax.files.paths import is_remote, retried

_LOG = logging.getLogger("memjax")
_SPACE = "expected room for it. Free space and run the same command again"
_ACCESS = "expected access to it. Change its permissions or use another path"
_BUCKET = "expected a bucket that answers. Check the connection and run the same command again"
_DISK = "expected a disk that works. Check it and run the same command again"
REFUSALS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _SPACE),
    **dict.fromkeys((errno.EACCES, errno.EPERM), _ACCESS),
    **dict.fromkeys((errno.EIO, errno.ESTALE), _DISK),
    errno.ETIMEDOUT: _BUCKET,
    errno.EROFS: "expected one that can be written. Use another path",
    errno.ENXIO: "expected a file, or a pipe that is read. Remove it or use another path",
}
"""Expectation and remedy by the error number of a file system that refuses."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""The beginning of an address, also where `Path` has left out its second slash."""
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
"""Errors of file systems that have no locks."""


def regular(path: str | os.PathLike) -> Path:
    """Return the path of a file, which has an end; opening a pipe or a device may wait for ever.

    Raises:
      OSError: it is of another kind, absent or out of reach.
    """
    path = Path(path)
    if not stat.S_ISREG(path.stat().st_mode):
        what = "a folder, pipe, device or socket, not a file"
        raise OSError(errno.EINVAL, what, str(path))
    return path


def local(path: str | os.PathLike) -> Path:
    """Return the path of what is written on this machine; `~` is the folder of its user.

    Raises:
      OSError: it is an address, as of a bucket; a folder `gs:` would be made for it.
    """
    if _ADDRESS.match(os.fspath(path)):
        what = "an address, expected a path on this machine. Write it there and copy it"
        raise OSError(errno.EINVAL, what, os.fspath(path))
    return Path(path).expanduser()


def new_folder(path: str | os.PathLike, error: type[ValueError]) -> Path:
    """Return the local path of a folder that is absent or empty.

    Raises:
      error: something is there.
      OSError: it is an address.
    """
    folder = local(path)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise error(
            f"{path}: is there already, expected a new or empty folder. Delete it or use another"
        )
    return folder


def sha256(path: Path) -> str:
    """Return the sha256 of a file, on disk or in a bucket, as 64 hex digits."""

    def of(file: Path) -> str:
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while part := stream.read(2**20):
                digest.update(part)
        return digest.hexdigest()

    return retried(path, lambda: of(path)) if is_remote(path) else of(regular(path))


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Raise what a file system refuses in a block as an OSError that names `path`.

    Writes to an open file name none. Libraries in C++ and Rust raise classes of their own, whose
    text has the system's reason.
    """
    try:
        yield
    except OSError as error:
        hidden = error.filename is not None and ".tmp" in os.fsdecode(error.filename)
        if hidden or (error.errno and error.filename is None):
            error.filename = os.fspath(path)
            del error.filename2  # None would be shown.
        raise
    except Exception as error:
        number = next((n for n in REFUSALS if os.strerror(n) in str(error)), None)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), os.fspath(path)) from error


def explain(error: OSError) -> str:
    """Return an error of the system as `<file>: <reason>, expected <what>. <what to do>`."""
    if error.filename is None:
        return str(error)
    said = f"{os.fsdecode(error.filename)}: {error.strerror}"
    return f"{said}, {REFUSALS[error.errno]}" if error.errno in REFUSALS else said


def check_writable(path: str | os.PathLike) -> None:
    """Check that a file can be written, before work whose result it is; nothing stays there.

    Raises:
      OSError: it cannot be; the error names `path`.
    """
    path = local(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if _is_system(path) or (path.exists() and not path.is_file()):
        return  # Such as /dev/stdout.
    folder = next(one for one in path.absolute().parents if one.exists())
    with writing(path), tempfile.NamedTemporaryFile(dir=folder, suffix=".tmp"):
        pass


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike, sync: bool = False) -> Iterator[Path]:
    """Yield the path of a hidden file that replaces `path` when the block ends well.

    Args:
      path: the file; folders above it are created. Of a link, the file that it leads to is
        replaced. A device, a pipe, or what a link in /dev or /proc leads to, such as /dev/stdout,
        is written in place.
      sync: whether the contents and the rename survive a loss of power.

    Raises:
      OSError: it cannot be written; the error names `path`.
    """
    path = given = local(path)
    with contextlib.suppress(FileNotFoundError):
        path.stat()  # Raises where links lead in a circle.
    while path.is_symlink() and not _is_system(path):
        path = path.parent / path.readlink()
    if path.is_symlink() or (path.exists() and not (path.is_file() or path.is_dir())):
        with writing(given), _reader(path):
            yield path
        return
    # Names may have 255 bytes.
    hidden = f".{path.name[:50]}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    temporary = path.with_name(hidden)
    try:
        with writing(given):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if sync:
                for file in (temporary, *temporary.rglob("*")):
                    _sync(file)
            temporary.replace(path)
            if sync:
                _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def _reader(path: Path) -> Iterator[None]:
    """Hold a pipe open, where `path` is one; without a reader, opening it later would never end."""
    pipe = stat.S_ISFIFO(path.stat().st_mode) and os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    try:
        yield
    finally:
        if pipe:
            os.close(pipe)


def _is_system(path: Path) -> bool:
    """Return whether a link is the system's own, such as /dev/stdout: it leads to an open file."""
    shared = path.is_relative_to("/dev/shm")
    return path.is_relative_to("/proc") or (path.is_relative_to("/dev") and not shared)


@contextlib.contextmanager
def atomic_dir(path: str | os.PathLike, sync: bool = False) -> Iterator[Path]:
    """Yield a new hidden folder that becomes `path` when the block ends well.

    Args:
      path: a folder that is absent or empty; folders above it are created.
      sync: whether the files and the rename survive a loss of power.
    """
    with atomic_file(path, sync) as temporary:
        temporary.mkdir()
        yield temporary


@contextlib.contextmanager
def locked(path: Path, busy: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file `path`, which the system releases however the process ends.

    Args:
      path: the lock file; it exists while the lock is held. Folders above it are created.
      busy: called before waiting for another process that holds the lock. It may raise.
    """
    lock = FileLock(path, fallback_to_soft=False)
    try:
        with writing(path):
            lock.acquire(blocking=False)
    except Timeout:
        busy()
        lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _warn_unlocked(path.parent)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()


@functools.cache
def _warn_unlocked(folder: Path) -> None:
    """Warn, once per folder and process, that a file system has no locks."""
    _LOG.warning(
        "%s: its file system has no locks, expected flock. Run one memjax process at a time here,"
        " or mount it with locks (NFS: local_lock=flock, Lustre: -o flock)",
        folder,
    )


@contextlib.contextmanager
def resumable_dir(
    path: Path, worth_keeping: Callable[[Path], bool], log: Callable[[str], None]
) -> Iterator[Path | None]:
    """Yield a folder `.NAME.partial` that becomes `path` when the block ends well.

    One process at a time has it. It survives a kill, and the next process resumes it; after an
    exception it is kept only if `worth_keeping`. Yields None where another process has made `path`.
    """
    partial = path.with_name(f".{path.name}.partial")
    with locked(
        path.with_name(f".{path.name}.lock"),
        lambda: log(f"data: waiting for another process that is making {path}"),
    ):
        if path.exists() and any(path.iterdir()):
            yield None
            return
        partial.mkdir(exist_ok=True)
        try:
            remove_temporary(partial)
            yield partial
            remove_temporary(partial)
            partial.rename(path)
        finally:
            if partial.exists():
                remove_temporary(partial)
                if not worth_keeping(partial):
                    shutil.rmtree(partial, ignore_errors=True)


def remove_temporary(folder: Path) -> None:
    """Remove files that killed processes left half written; no other process may write there."""
    for file in folder.rglob(".*.tmp"):
        if file.is_file():
            file.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 file whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_bytes(text.encode())


def write_json(path: str | os.PathLike, value: Any, indent: int | None = 2) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def _sync(path: Path) -> None:
    """Flush a file or a folder to disk; some file systems refuse to flush folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError) if path.is_dir() else contextlib.nullcontext():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
