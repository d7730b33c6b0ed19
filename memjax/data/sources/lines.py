"""Text files and JSON lines, plain or packed by gzip or zstd.

Plain files are reached by byte offsets from one pass that looks for line ends alone. Packed ones are streamed from their start; for
single documents they are unpacked to a temporary file on disk.
"""

from __future__ import annotations

import abc
import array
import io
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from memjax.data.sources.base import Document
from memjax.data.sources.documents import DocumentError, text_of_json
from memjax.data.sources.parts import Part, Span
from memjax.data.sources.streams import MARK, is_packed, pieces, pieces_of_unpacked, unpacked_pieces, whole_lines

SEPARATOR = "<|endoftext|>"
"""A line of this alone ends a document in a text file."""
SECTION_CHARACTERS = 4_000
"""A text file longer than this becomes several documents: one ends at the next blank line."""

_SPACE = (
    rb"(?:[\t\x0b\x0c\r\x1c-\x1f ]++|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80)*+"
)
"""White space inside a line, as `str.strip` sees it, in UTF-8."""
_BLANK = re.compile(rb"\n(?=%b(%b%b)?\n)" % (_SPACE, re.escape(SEPARATOR.encode()), _SPACE))
"""The line end before a line that is blank, or (then with a group) a separator."""


class Entry(NamedTuple):
    """A document's bytes."""

    number: int
    """Of the document in a text file, of the line in JSON lines."""
    offset: int
    """In the text of the file, unpacked."""
    raw: bytes


class Index(NamedTuple):
    """Where documents start: 8 bytes a document, and 16 for each run of blank lines between JSON lines."""

    offsets: np.ndarray
    """Ascending bytes [documents]."""
    jumps: np.ndarray
    """Documents, ascending, of which the number does not follow that of the one before."""
    numbers: np.ndarray
    """Their numbers."""

    def number(self, document: int) -> int:
        """By which document `document` is called."""
        jump = np.searchsorted(self.jumps, document, "right") - 1
        return int(self.numbers[jump] + document - self.jumps[jump])


class _LinesPart(Part):
    """A file whose documents stand in its lines."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.packed = is_packed(self.file)
        self.grown = 3 if self.packed else 1
        self._index: Index | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_index": None}

    def __len__(self) -> int:
        return len(self.index().offsets)

    def index(self) -> Index:
        """Where the documents are; made when it is first needed."""
        if self._index is None:
            offsets, jumps, numbers = (array.array("q") for _ in range(3))
            expected = -1
            for number, offset, _ in self.entries(self.whole()):
                if number != expected:
                    jumps.append(len(offsets))
                    numbers.append(number)
                offsets.append(offset)
                expected = number + 1
            self._index = Index(*(np.frombuffer(values, np.int64) for values in (offsets, jumps, numbers)))
        return self._index

    def get(self, number: int) -> Document:
        """Document `number` of the file."""
        index = self.index()
        start = int(index.offsets[number])
        stop = int(index.offsets[number + 1]) if number + 1 < len(index.offsets) else None
        raw = pieces_of_unpacked(self.file, start, stop) if self.packed else pieces(self.file, start, stop or self.size)
        return self.document(next(self.cut(whole_lines(raw), start, index.number(number))))

    def whole(self) -> Span:
        """The whole file."""
        return Span(0, self.size, self.first)

    def spans(self, size: int) -> list[Span]:
        """Documents that start in the same `size` bytes; a packed file is one span."""
        if self.packed or self.size <= size:
            return [self.whole()]
        index = self.index()
        documents = np.unique(np.searchsorted(index.offsets, np.arange(0, self.size, size)))
        documents = [int(document) for document in documents if document < len(index.offsets)] or [0]
        starts = [0, *(int(index.offsets[document]) for document in documents[1:])]
        numbers = [self.first, *(index.number(document) for document in documents[1:])]
        return [Span(*span) for span in zip(starts, [*starts[1:], self.size], numbers, strict=True)]

    def number_at(self, start: int) -> int:
        """`first` of the span that starts at this byte."""
        return self.index().number(int(np.searchsorted(self.index().offsets, start))) if start else self.first

    def entries(self, span: Span) -> Iterator[Entry]:
        """The documents of a span, as bytes."""
        start = span.start
        raw = whole_lines(unpacked_pieces(self.file) if self.packed else pieces(self.file, start, span.stop))
        if start == 0:
            head = next(raw, b"")
            start = len(MARK) if head.startswith(MARK) else 0
            raw = itertools.chain([head[start:]], raw)
        return self.cut(raw, start, span.first)

    def decoded(self, entry: Entry) -> str:
        """An entry as text."""
        try:
            return entry.raw.decode()
        except UnicodeDecodeError as error:
            raise DocumentError(
                f"{self.file}: not UTF-8 at byte {entry.offset + error.start}{' of the unpacked text' if self.packed else ''};"
                " re-encode it, for example with `iconv -f LATIN1 -t UTF-8`",
                "not UTF-8",
            ) from error

    @staticmethod
    @abc.abstractmethod
    def cut(lines: Iterable[bytes], offset: int, number: int) -> Iterator[Entry]:
        """The documents in pieces of whole lines, of which the first starts at `offset` and a document `number`."""


class TextPart(_LinesPart):
    """A text file: what stands between separators; a long text is cut at a blank line, so that one book can be split as well."""

    def document(self, entry: Entry) -> Document:
        """The document of an entry."""
        return Document(f"{self.file}#{entry.number}", self.decoded(entry))

    @staticmethod
    def cut(lines: Iterable[bytes], offset: int, number: int) -> Iterator[Entry]:
        """Documents end at a separator, which is dropped, and at the first blank line after SECTION_CHARACTERS, which is kept."""
        held: list[bytes] = []
        characters = 0  # Of what is held.
        start = offset
        for piece in lines:
            begin = 0
            for match in _BLANK.finditer(b"\n" + piece + (b"" if piece.endswith(b"\n") else b"\n")):
                line = match.start()
                if match[1] is None and not _is_long(piece[begin:line], SECTION_CHARACTERS - characters):
                    continue
                yield Entry(number, start, b"".join((*held, piece[begin:line])))
                begin = line if match[1] is None else min(match.end(1), len(piece))
                held, characters, number, start = [], 0, number + 1, offset + begin
            held.append(piece[begin:])
            characters += len(piece[begin:].decode(errors="ignore"))
            offset += len(piece)
        yield Entry(number, start, b"".join(held))


def _is_long(raw: bytes, characters: int) -> bool:
    """Whether there are that many characters; the most are told by the number of bytes."""
    return len(raw) >= characters and (len(raw) >= 4 * characters or len(raw.decode(errors="ignore")) >= characters)


class JsonLinesPart(_LinesPart):
    """JSON objects, one a line; the document is a field of it. Blank lines are no documents."""

    first = 1

    def document(self, entry: Entry) -> Document:
        """The document of a line."""
        where = f"{self.file}:{entry.number}"
        return Document(where, text_of_json(self.decoded(entry), where, self.field))

    @staticmethod
    def cut(lines: Iterable[bytes], offset: int, number: int) -> Iterator[Entry]:
        """The lines that are not blank."""
        for piece in lines:
            for raw in io.BytesIO(piece):
                if raw[0] == 0x7B or raw.decode(errors="replace").strip():
                    yield Entry(number, offset, raw)
                offset += len(raw)
                number += 1
