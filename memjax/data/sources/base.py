"""What every source of text can do, whatever it is stored in."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


class CorpusError(ValueError):
    """The corpus is absent, damaged, of an unknown form or too small; the message names the file or the setting."""


@dataclass(frozen=True)
class Document:
    """One text and where it came from."""

    id: str
    text: str


@dataclass(frozen=True)
class Block:
    """Documents that are read and written together, by one process: the unit of parallel preparation, picklable."""

    part: int
    """Which file (or part) of the source."""
    start: int
    """Where in it, in units of the source: documents or bytes."""
    stop: int


class Source(abc.ABC):
    """Documents in a fixed order. Picklable: a process opens files of its own.

    Attributes:
      name: the corpus as the config has it.
    """

    name: str

    @abc.abstractmethod
    def __len__(self) -> int:
        """Documents, those without any visible character included; may read an index once."""

    @abc.abstractmethod
    def __getitem__(self, number: int) -> Document:
        """Document `number`.

        Raises:
          IndexError: there is no such document.
          CorpusError: it is damaged.
        """

    @abc.abstractmethod
    def blocks(self, size: int) -> list[Block]:
        """All documents in blocks of about `size` bytes of text; a function of the files and `size` alone."""

    @abc.abstractmethod
    def read(self, block: Block) -> Iterator[Document]:
        """The documents of a block in order, with constant memory; the same ones whatever process asks.

        Raises:
          CorpusError: a document is damaged; the message names the file and the place.
        """

    @abc.abstractmethod
    def stamp(self) -> list[list[Any]]:
        """JSON-like values; while they are the same, so is the text, without reading it: names, sizes and times of files, or versions."""

    def __iter__(self) -> Iterator[Document]:
        """All documents, block after block."""
        for block in self.blocks(1 << 62):
            yield from self.read(block)
