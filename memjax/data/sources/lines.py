"""Text files and JSON lines, plain or compressed by gzip or zstd.

One pass over a large plain file finds the bytes where blocks start. A compressed file is one block.
"""

from __future__ import annotations

import abc
import functools
import io
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from memjax.data.sources import streams
from memjax.data.sources.base import CorpusError, Document
from memjax.data.sources.documents import text_of_bytes, text_of_json
from memjax.data.sources.parts import Part, Span
from memjax.data.sources.streams import (
    MARK,
    MARKS,
    PACKED,
    first_bytes,
    pieces,
    recoded,
    unpacked_pieces,
    whole_lines,
)

SEPARATOR = "<|endoftext|>"
"""A line that holds this alone ends a document of a text file."""
SECTION_CHARACTERS = 4_000
"""A document of a text file that is longer than this ends at the next boundary."""
WRAPPED_CHARACTERS = 120
"""Lines of a text that is broken to fit a page are at most as long."""
_HEAD = 4096
"""Bytes of a file that show its encoding."""
_LONG_HEAD = 1 << 20
"""Bytes of a text file that show where its documents end."""

_SPACE = (
    rb"(?:[\t\x0b\x0c\r\x1c-\x1f ]++|\xc2[\x85\xa0]|\xe1\x9a\x80|"
    rb"\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80)*+"
)
"""White space within a line in UTF-8, as `str.strip` removes it."""
_BLANK = re.compile(rb"\n(?=%b(%b%b)?\n)" % (_SPACE, re.escape(SEPARATOR.encode()), _SPACE))
"""The line end before a line that is blank, or (then with a group) a separator."""
_ANY = re.compile(
    rb"\n(?:(?=%b(%b%b)\n)|(?=[\s\S]))" % (_SPACE, re.escape(SEPARATOR.encode()), _SPACE)
)
"""The line end before any line; with a group if that is a separator."""
_JOINED = re.compile(rb"(?<=\})(?=%b\s*\{)" % MARK)
"""The place between two JSON objects of which the second began a file."""


class Entry(NamedTuple):
    """The bytes of a document."""

    number: int
    """The number of the document in a text file, or of the line in JSON lines."""
    offset: int
    """The first byte in the uncompressed text of the file."""
    raw: bytes


class _LinesPart(Part):
    """A file whose documents are lines or groups of lines."""

    REMEDY: ClassVar[str]
    """The remedy for a document that is too long."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.packed = self.file.suffix.lower() in PACKED
        self.text_per_byte = 3 if self.packed else 1

    def whole(self) -> Span:
        """Return the whole file as one span."""
        return Span(0, self.size, self.first)

    def spans(self, size: int) -> list[Span]:
        """Return spans of documents that start in the same `size` bytes.

        A file that is compressed, or not in UTF-8, is one span.
        """
        if self.packed or self.encoding or self.size <= size:
            return [self.whole()]
        starts, boundary = [], 0
        for number, offset, _ in self.entries(self.whole()):
            if offset >= boundary:
                starts.append((offset, number))
                boundary = (offset // size + 1) * size
        starts[:1] = [(0, self.first)]
        stops = [*(start for start, _ in starts[1:]), self.size]
        return [
            Span(start, stop, number) for (start, number), stop in zip(starts, stops, strict=True)
        ]

    def entries(self, span: Span) -> Iterator[Entry]:
        """Yield the documents of a span as bytes of UTF-8."""
        start = span.start
        raw = whole_lines(self.text(start, span.stop), start, self.too_long)
        if start == 0:
            head = next(raw, b"")
            start = len(MARK) if head.startswith(MARK) else 0
            raw = itertools.chain([head[start:]], raw)
        return self.split(raw, start, span.first)

    @functools.cached_property
    def encoding(self) -> str:
        """Return the encoding that the byte order mark names, or an empty string for UTF-8.

        Raises:
          CorpusError: the file has another encoding and no byte order mark.
        """
        head = first_bytes(self._raw(0, self.size), _HEAD)
        zeros = head.count(0)
        found = next((name for mark, name in MARKS.items() if head.startswith(mark)), "")
        CorpusError.require(
            found or zeros <= len(head) // 8,
            f"{self.file}: {zeros} of the first {len(head)} bytes are zero, expected UTF-8, or"
            " UTF-16 with a byte order mark. Re-encode the file, for example with `iconv -f"
            " UTF-16LE -t UTF-8`",
        )
        return found

    def text(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield a range of a file in UTF-8, or all of another, as UTF-8."""
        raw = self._raw(start, stop)
        return recoded(raw, self.encoding, self.file) if self.encoding else raw

    def _raw(self, start: int, stop: int) -> Iterator[bytes]:
        return unpacked_pieces(self.file) if self.packed else pieces(self.file, start, stop)

    def too_long(self, offset: int) -> CorpusError:
        """Return the error for a line or document that starts at this byte of the text."""
        line = 1
        for piece in self.text(0, self.size):
            line += piece[:offset].count(b"\n")
            offset -= len(piece)
            if offset <= 0:
                break
        return CorpusError(
            f"{self.file}:{line}: here starts a document of more than {streams.LONGEST:,} bytes,"
            f" expected shorter ones. {self.REMEDY}"
        )

    def decoded(self, entry: Entry) -> str:
        """Return an entry as text, without the byte order marks of files that were joined."""
        remedy = ". Re-encode the file, for example with `iconv -f LATIN1 -t UTF-8`"
        more = f" of the uncompressed text{remedy}" if self.packed else remedy
        text = text_of_bytes(entry.raw, f"{self.file}:", more, entry.offset)
        return text.replace("\n\ufeff", "\n").removeprefix("\ufeff")

    @abc.abstractmethod
    def split(self, lines: Iterable[bytes], offset: int, number: int) -> Iterator[Entry]:
        """Yield the documents of pieces of whole lines.

        Args:
          lines: the pieces.
          offset: the byte in the text at which the first piece starts.
          number: the number of the document that starts there.
        """


class TextPart(_LinesPart):
    """A text file, split at separators; a long text is split at blank lines too.

    One book therefore has documents to train on and to hold out. A long text without a blank line
    has a document per line, unless all lines are so short that they are those of a page: then it is
    split at line ends.
    """

    REMEDY = f"Break it by lines of {SEPARATOR}"

    def document(self, entry: Entry) -> Document:
        """Return the document of an entry."""
        start = 0 if self.encoding else entry.offset + len(MARK) * entry.raw.startswith(MARK)
        return Document(f"{self.file}#{entry.number}", self.decoded(entry), start)

    @functools.cached_property
    def boundary(self) -> re.Pattern[bytes] | None:
        """Return where documents may end, judged by a long beginning; None for each line."""
        head = first_bytes(self.text(0, self.size), _LONG_HEAD).removeprefix(MARK).strip()
        if not _is_long(head, SECTION_CHARACTERS) or _BLANK.search(b"\n%b\n" % head):
            return _BLANK
        wrapped = not any(_is_long(line, WRAPPED_CHARACTERS + 1) for line in head.split(b"\n"))
        return _ANY if wrapped else None

    def split(self, lines: Iterable[bytes], offset: int, number: int) -> Iterator[Entry]:
        """Yield documents that end at a separator, at a late boundary, or with each line.

        A separator is dropped, and where each line is a document, blank lines are.
        """
        boundary = self.boundary
        if boundary is None:
            every = _lines(lines, offset, number)
            yield from (entry for entry in every if entry.raw.strip() != SEPARATOR.encode())
            return
        held: list[bytes] = []
        characters = 0  # In `held`.
        start = offset
        for piece in lines:
            begin = 0
            for match in boundary.finditer(
                b"\n" + piece + (b"" if piece.endswith(b"\n") else b"\n")
            ):
                line = match.start()
                if match[1] is None and not _is_long(
                    piece[begin:line], SECTION_CHARACTERS - characters
                ):
                    continue
                yield Entry(number, start, b"".join((*held, piece[begin:line])))
                begin = line if match[1] is None else min(match.end(1), len(piece))
                held, characters, number, start = [], 0, number + 1, offset + begin
            held.append(piece[begin:])
            characters += len(piece[begin:].decode(errors="ignore"))
            offset += len(piece)
            if offset - start > streams.LONGEST:
                raise self.too_long(start)
        yield Entry(number, start, b"".join(held))


def _is_long(raw: bytes, characters: int) -> bool:
    """Return whether there are that many characters; the number of bytes often decides."""
    return len(raw) >= characters and (
        len(raw) >= 4 * characters or len(raw.decode(errors="ignore")) >= characters
    )


class JsonLinesPart(_LinesPart):
    """JSON objects, one per line, each with a document in one field. Blank lines are skipped."""

    REMEDY = "Write it as several lines"
    first = 1

    def document(self, entry: Entry) -> Document:
        """Return the document of a line."""
        where = f"{self.file}:{entry.number}"
        return Document(where, text_of_json(self.decoded(entry), where, self.field))

    def split(self, lines: Iterable[bytes], offset: int, number: int) -> Iterator[Entry]:
        """Yield the lines that are not blank; files without a last line end may share a line."""
        for entry in _lines(lines, offset, number):
            at = entry.offset
            for raw in _JOINED.split(entry.raw) if MARK in entry.raw else (entry.raw,):
                yield Entry(entry.number, at, raw)
                at += len(raw)


def _lines(pieces: Iterable[bytes], offset: int, number: int) -> Iterator[Entry]:
    """Yield the lines that are not blank; `number` is that of the first line."""
    for piece in pieces:
        for raw in io.BytesIO(piece):
            if raw[0] == 0x7B or raw.decode(errors="replace").strip("\ufeff").strip():
                yield Entry(number, offset, raw)
            offset += len(raw)
            number += 1


def text_lines(file: str | os.PathLike) -> Iterator[tuple[int, str]]:
    """Yield (number, line) of the lines of a file that are not blank, read as those of a corpus.

    Raises:
      CorpusError: the file is absent, damaged or no text.
    """
    part = JsonLinesPart(Path(file), "")
    for entry in part.entries(part.whole()):
        yield entry.number, part.decoded(entry)
