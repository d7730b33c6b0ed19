"""The interface of every source of text, whatever stores it."""

from __future__ import annotations

import abc
import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from memjax import progress
from memjax.errors import MemjaxError, few

Entry = TypeVar("Entry")
NAMED = 20
"""Damaged documents that are named; all are counted."""


class CorpusError(MemjaxError):
    """A corpus is absent, damaged, of an unknown format or too small.

    The message names the file or the setting.
    """


class DocumentError(CorpusError):
    """One document is damaged; its neighbours may be whole.

    Attributes:
      reason: the kind of damage, in words that are the same for all documents of that kind.
    """

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        """Keep both arguments, so that a process can return the error."""
        return type(self), (str(self), self.reason)


@dataclass(frozen=True)
class Document:
    """One text and its origin."""

    id: str
    text: str
    start: int = dataclasses.field(default=0, compare=False)
    """The byte of the unpacked file at which the text begins; 0 where the file does not contain it
    verbatim."""


@dataclass(frozen=True)
class Block:
    """Documents that one process reads and writes together: the unit of parallel preparation."""

    part: int
    """The number of the file (or part) of the source."""
    start: int
    """Where the block starts in that file, in units of the source: documents or bytes."""
    stop: int


class Skipped(NamedTuple):
    """The damaged documents that a source skipped."""

    counts: dict[str, int]
    """From a reason to a number of documents."""
    messages: list[str]
    """The errors of the first NAMED."""


def counted(counts: Mapping[str, int]) -> str:
    """Return "3 .pdf, 1 .md" of {".pdf": 3, ".md": 1}, and no more than a few kinds."""
    return few([f"{count} {kind}" for kind, count in sorted(counts.items())])


class Source(abc.ABC):
    """Documents in a fixed order. Picklable: each process opens its own files.

    Damaged documents can be skipped; those without any visible character always are.

    Attributes:
      name: the corpus as the config names it.
      skip_damaged: whether `read` skips documents that are not readable as text; otherwise it
        raises.
      skipped: from a reason to the number of documents that this copy of the source has skipped.
        It is not pickled: a process that reads for another returns its own, by `take_skipped`.
      damaged: the errors of the first NAMED of them, each with the place of the document.
      left_out: which files of a folder are no documents and how many, as text; or nothing.
      signature: see `mtime_signature`.
    """

    left_out: str = ""
    signature: list[list[Any]]

    def __init__(self, name: str, skip_damaged: bool):
        self.name = name
        self.skip_damaged = skip_damaged
        self.skipped: collections.Counter[str] = collections.Counter()
        self.damaged: list[str] = []

    def take_skipped(self) -> Skipped:
        """Return the documents skipped since the last call."""
        taken = Skipped(dict(self.skipped), self.damaged)
        self.skipped.clear()
        self.damaged = []
        return taken

    def visible(
        self, entries: Iterable[Entry], document: Callable[[Entry], Document]
    ) -> Iterator[Document]:
        """Yield `document` of each entry, except damaged ones and those of white space alone.

        Raises:
          DocumentError: a document is damaged, and the source does not skip.
        """
        for entry in entries:
            try:
                found = document(entry)
            except DocumentError as error:
                if not self.skip_damaged:
                    raise
                self.skipped[error.reason] += 1
                if len(self.damaged) < NAMED:
                    self.damaged.append(str(error))
                continue
            if found.text and not found.text.isspace():
                yield found

    @abc.abstractmethod
    def blocks(self, size: int) -> list[Block]:
        """Return all documents in blocks of about `size` bytes of text.

        The blocks depend on the files and on `size` alone.
        """

    @abc.abstractmethod
    def read(self, block: Block) -> Iterator[Document]:
        """Yield the documents of a block in order, in constant memory.

        Raises:
          CorpusError: a document is damaged; the message names the file and the place.
        """

    def mtime_signature(self) -> list[list[Any]]:
        """Return values that change when the text changes, without reading the text.

        These are names, sizes and times of files, or versions, all representable in JSON.
        """
        return self.signature

    def __iter__(self) -> Iterator[Document]:
        """Yield all documents, block after block, and log what is left out."""
        if self.left_out:
            progress.log(f"{self.name}: left out {self.left_out}")
        for block in self.blocks(1 << 62):
            yield from self.read(block)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what this copy has skipped."""
        return self.__dict__ | {"skipped": collections.Counter(), "damaged": []}
