"""What a file of documents can do, whatever its format."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from memjax.data.sources.base import Document


class Span(NamedTuple):
    """A range of a file that starts and ends between documents."""

    start: int
    """Bytes, rows or records: what `Part.length` counts."""
    stop: int
    first: int
    """The number by which the first document is called in its id."""


class Part(abc.ABC):
    """One file. Picklable; an index of it stays behind and is built again where it is needed.

    Attributes:
      file: its path.
      field: of a record that holds the text.
      size: bytes on disk when it was opened.
    """

    first = 0
    """The number of the first document of a file."""
    grown = 1
    """About how many bytes of text there are to a byte on disk."""

    def __init__(self, file: Path, field: str, size: int):
        self.file = file
        self.field = field
        self.size = size

    @abc.abstractmethod
    def __len__(self) -> int:
        """Documents."""

    @abc.abstractmethod
    def get(self, number: int) -> Document:
        """Document `number` of the file."""

    @abc.abstractmethod
    def spans(self, size: int) -> list[Span]:
        """The whole file in spans of about `size` bytes of text."""

    @abc.abstractmethod
    def whole(self) -> Span:
        """The whole file."""

    @abc.abstractmethod
    def number_at(self, start: int) -> int:
        """`first` of the span that starts there."""

    @abc.abstractmethod
    def entries(self, span: Span) -> Iterator[Any]:
        """What stands for each document of a span, not yet looked into."""

    @abc.abstractmethod
    def document(self, entry: Any) -> Document:
        """The document of one of `entries`.

        Raises:
          DocumentError: it is damaged.
        """
