"""Bytes of files, plain or packed, in pieces of bounded size."""

from __future__ import annotations

import collections
import gzip
import os
import tempfile
import threading
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from memjax.data.sources.base import CorpusError

PACKED = (".gz", ".zst")
MARK = b"\xef\xbb\xbf"
"""The byte order mark."""
_PIECE = 1 << 20
_ZSTD_PIECE = 1 << 16
"""Packed bytes given to zstd at once: what comes out may be many times as long."""
_UNPACKED_FILES = 2


def is_packed(file: Path) -> bool:
    """Whether the file is compressed, by its name."""
    return file.suffix in PACKED


def pieces(file: Path, start: int, stop: int) -> Iterator[bytes]:
    """The bytes `start` to `stop - 1` of a file as it lies on disk.

    Raises:
      CorpusError: it cannot be read.
    """
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError as error:
        raise unreadable(file, error) from error
    try:
        yield from _pieces_of(file, descriptor, start, stop)
    finally:
        os.close(descriptor)


def _pieces_of(file: Path, descriptor: int, start: int, stop: int) -> Iterator[bytes]:
    while start < stop:
        try:
            piece = os.pread(descriptor, min(_PIECE, stop - start), start)
        except OSError as error:
            raise unreadable(file, error) from error
        if not piece:
            raise CorpusError(f"{file}: became shorter while it was read; run again when it is complete")
        yield piece
        start += len(piece)


def unpacked_pieces(file: Path) -> Iterator[bytes]:
    """The text of a file that is packed by gzip or zstd, none of them empty.

    Raises:
      CorpusError: it cannot be read, is truncated or damaged, or needs a package that is not installed.
    """
    try:
        yield from (_gzip_pieces if file.suffix == ".gz" else _zstd_pieces)(file)
    except OSError as error:
        raise unreadable(file, error) from error


def _gzip_pieces(file: Path) -> Iterator[bytes]:
    try:
        with gzip.open(file) as stream:
            while piece := stream.read(_PIECE):
                yield piece
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(file, "gzip", error) from error


def _zstd_pieces(file: Path) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise missing(str(file), "zstandard", "data") from error
    # Frames may follow each other. A reader of whole streams ends at a truncated one without a word, so they are fed by hand.
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame = decompressor.decompressobj()
    inside = False
    waiting: list[bytes] = []
    try:
        with open(file, "rb") as stream:
            while raw := stream.read(_ZSTD_PIECE):
                while raw:
                    waiting.append(frame.decompress(raw))
                    inside = not frame.eof
                    raw = b"" if inside else frame.unused_data
                    frame = frame if inside else decompressor.decompressobj()
                if sum(map(len, waiting)) >= _PIECE:
                    yield b"".join(waiting)
                    waiting = []
    except zstandard.ZstdError as error:
        raise _damaged(file, "zstd", error) from error
    if inside:
        raise _damaged(file, "zstd", "the last frame has no end")
    if last := b"".join(waiting):
        yield last


def _damaged(file: Path, packing: str, why: object) -> CorpusError:
    return CorpusError(f"{file}: the {packing} data is truncated or damaged ({why}); copy or download the file again")


def unreadable(file: Path, error: OSError) -> CorpusError:
    """The error to raise for a file that the system does not give."""
    return CorpusError(f"{file}: cannot be read ({error.strerror or error})")


def missing(what: str, package: str, extra: str) -> CorpusError:
    """The error to raise where a form of corpus needs a package that is not installed."""
    return CorpusError(f"{what}: is read by the package {package}; `pip install {package}`, or install memjax[{extra}]")


def whole_lines(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of which each but the last ends a line."""
    held: list[bytes] = []
    for part in parts:
        cut = part.rfind(b"\n") + 1
        if cut:
            yield b"".join((*held, part[:cut]))
            held = [part[cut:]]
        else:
            held.append(part)
    if last := b"".join(held):
        yield last


class _Unpacked:
    """The text of a packed file in a temporary file without a name, so that any place of it can be read."""

    def __init__(self, file: Path):
        self.descriptor, name = tempfile.mkstemp(prefix="memjax-")
        os.unlink(name)
        self.size = 0
        for piece in unpacked_pieces(file):
            left = memoryview(piece)
            while left:
                try:
                    left = left[os.write(self.descriptor, left) :]
                except OSError as error:
                    raise CorpusError(
                        f"{file}: to read single documents of it, it is unpacked in {tempfile.gettempdir()}, which failed"
                        f" ({error.strerror}); unpack it, or set TMPDIR to a disk with room"
                    ) from error
            self.size += len(piece)

    def __del__(self) -> None:
        os.close(self.descriptor)


_unpacked: collections.OrderedDict[tuple, _Unpacked] = collections.OrderedDict()
_lock = threading.Lock()


def pieces_of_unpacked(file: Path, start: int, stop: int | None) -> Iterator[bytes]:
    """Bytes `start` to `stop - 1` (None: all that follow) of the text of a packed file.

    The file is unpacked once to a temporary file on disk. A process keeps the last two of these, and no more.

    Raises:
      CorpusError: as `unpacked_pieces`, or there is no room for it.
    """
    try:
        state = os.stat(file)
    except OSError as error:
        raise unreadable(file, error) from error
    key = (str(file), state.st_size, state.st_mtime_ns)
    with _lock:
        if key not in _unpacked:
            _unpacked[key] = _Unpacked(file)
        _unpacked.move_to_end(key)
        while len(_unpacked) > _UNPACKED_FILES:
            _unpacked.popitem(last=False)
        text = _unpacked[key]
    yield from _pieces_of(file, text.descriptor, start, text.size if stop is None else stop)
