"""The interface of one file of documents, whatever its format."""

from __future__ import annotations

import abc
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from memjax.data.sources.base import Document
from memjax.data.sources.streams import unreadable
from memjax.files import regular


def stat_of(file: Path) -> os.stat_result:
    """Return size and times of a file.

    Raises:
      CorpusError: the file is absent, unreadable or a pipe, for example.
    """
    try:
        return regular(file).stat()
    except OSError as error:
        raise unreadable(file, error) from error


class Span(NamedTuple):
    """A range of a file that starts and ends between documents."""

    start: int
    """The first byte, row or record."""
    stop: int
    first: int
    """The number of the first document, as its id shows it."""


class Part(abc.ABC):
    """One file. Picklable; each process opens it for itself.

    Attributes:
      file: its path.
      field: the field of a record that holds the text.
      size: bytes on disk when the source was opened.
      changed: time of the last change then, in ns.
    """

    first = 0
    """The number of the first document of a file."""
    text_per_byte = 1
    """About how many bytes of text there are per byte on disk."""

    def __init__(self, file: Path, field: str):
        state = stat_of(file)
        self.file, self.field = file, field
        self.size, self.changed = state.st_size, state.st_mtime_ns

    @abc.abstractmethod
    def whole(self) -> Span:
        """Return the whole file as one span."""

    @abc.abstractmethod
    def spans(self, size: int) -> list[Span]:
        """Return the whole file in spans of about `size` bytes of text."""

    @abc.abstractmethod
    def entries(self, span: Span) -> Iterator[Any]:
        """Yield one undecoded entry per document of a span."""

    @abc.abstractmethod
    def document(self, entry: Any) -> Document:
        """Return the document of an entry.

        Raises:
          DocumentError: the document is damaged.
        """

    def opened(self, opener: Callable[[str], Any]) -> Any:
        """Return what `opener` makes of the path; each process keeps a few open files of its own.

        Raises:
          CorpusError: the file is unreadable.
        """
        state = stat_of(self.file)
        return _opened(opener, str(self.file), state.st_size, state.st_mtime_ns, os.getpid())


@functools.lru_cache(maxsize=8)
def _opened(opener: Callable[[str], Any], file: str, size: int, changed: int, process: int) -> Any:
    return opener(file)
