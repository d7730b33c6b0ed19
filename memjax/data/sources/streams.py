"""Bytes of files, plain or compressed, in pieces of bounded size."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from memjax.data.sources.base import CorpusError

PACKED = {".gz": "gzip", ".zst": "zstd"}
"""Ends of the names of compressed files, and what compressed them."""
MARK = codecs.BOM_UTF8
"""The byte order mark in UTF-8."""
LONGEST = 1 << 26
"""Bytes of a document of text or of a line: one is in memory as a whole."""
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""From the first bytes of a file to its encoding; the first that fits is right."""
_PIECE = 1 << 20


def pieces(file: Path, start: int, stop: int) -> Iterator[bytes]:
    """Yield the bytes `start` to `stop - 1` of a file on disk.

    Raises:
      CorpusError: the file is unreadable.
    """
    try:
        with open(file, "rb") as stream:
            stream.seek(start)
            while start < stop:
                piece = stream.read(min(_PIECE, stop - start))
                CorpusError.require(
                    piece, f"{file}: became shorter during reading. Run again when it is complete"
                )
                yield piece
                start += len(piece)
    except OSError as error:
        raise unreadable(file, error) from error


def unpacked_pieces(file: Path) -> Iterator[bytes]:
    """Yield the text of a file that gzip or zstd compressed, in pieces that are not empty.

    Raises:
      CorpusError: the file is unreadable, truncated or damaged, or a package is missing.
    """
    try:
        with _unpacked(file) as stream:
            while piece := stream.read(_PIECE):
                yield piece
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno:
            raise unreadable(file, error) from error
        if "too much memory" in str(error):
            raise CorpusError(
                f"{file}: zstd data with a window of more than 128 MiB, expected a smaller one."
                " Unpack it by `zstd -d --long=31`"
            ) from error
        raise CorpusError(
            f"{file}: truncated or damaged {PACKED[file.suffix.lower()]} data ({error}). Copy or"
            " download the file again"
        ) from error


def _unpacked(file: Path) -> Any:
    """Open a stream of bounded memory; it reads frames and members that follow each other."""
    if file.suffix.lower() == ".gz":
        return gzip.open(file)
    try:
        import pyarrow
    except ImportError as error:
        raise missing(str(file), "pyarrow") from error
    return pyarrow.CompressedInputStream(file.open("rb"), "zstd")


def first_bytes(parts: Iterable[bytes], size: int) -> bytes:
    """Return the first `size` bytes, or all where there are fewer."""
    head = bytearray()
    for part in parts:
        head += part
        if len(head) >= size:
            break
    return bytes(head[:size])


def recoded(parts: Iterable[bytes], encoding: str, file: Path) -> Iterator[bytes]:
    """Yield text of another encoding as UTF-8, without its byte order mark.

    Raises:
      CorpusError: the text is truncated or damaged.
    """
    try:
        yield from (part.encode() for part in codecs.iterdecode(parts, encoding))
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{file}: truncated or damaged {encoding.upper()} text ({error.reason}). Copy or"
            " download the file again"
        ) from error


def unreadable(file: Path, error: OSError) -> CorpusError:
    """Return the error for a file that the system does not open or read."""
    return CorpusError(f"{file}: unreadable ({error.strerror or error}). Check the path")


def require_short(raw: bytes, where: str) -> None:
    """Raise CorpusError if a document of a file of records has more than LONGEST bytes."""
    CorpusError.require(
        len(raw) <= LONGEST,
        f"{where}: {len(raw):,} bytes, expected at most {LONGEST:,}. Write it as several documents",
    )


def missing(what: str, package: str) -> CorpusError:
    """Return the error for a corpus that needs a package that is not installed."""
    return CorpusError(f"{what}: needs the package {package}. Run `pip install {package}`")


def whole_lines(
    parts: Iterable[bytes], offset: int, too_long: Callable[[int], CorpusError]
) -> Iterator[bytes]:
    """Yield the same bytes in pieces, each of which but the last ends a line.

    Args:
      parts: the pieces.
      offset: the byte in the text at which the first piece starts.
      too_long: the error for a line of more than LONGEST bytes that starts at a byte.
    """
    held: list[bytes] = []
    size = 0
    for part in parts:
        end = part.rfind(b"\n") + 1
        if end:
            yield b"".join((*held, part[:end]))
            offset += size + end
            held, size = [], 0
        held.append(part[end:])
        size += len(part) - end
        if size > LONGEST:
            raise too_long(offset)
    if last := b"".join(held):
        yield last
