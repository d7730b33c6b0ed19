"""The prose that comes with Python, as a source."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Any

from memjax.data.sources.base import Document
from memjax.data.sources.documents import NumberedSource

PYTHON_DOCS = "python-docs"


class PythonDocsSource(NumberedSource):
    """`memjax.data.python_docs` with numbers. A process gathers it for itself, in a few seconds."""

    def __init__(self) -> None:
        super().__init__(PYTHON_DOCS, False)

    def _all(self) -> list[Document]:
        from memjax.data.corpora import python_docs  # That module reads corpora, by way of this package.

        return list(python_docs())

    def __len__(self) -> int:
        return len(self._all())

    def values(self, start: int, stop: int) -> Iterator[Document]:
        """The documents themselves."""
        yield from self._all()[start:stop]

    def document(self, number: int, value: Document) -> Document:
        """The document itself."""
        return value

    def text_bytes(self) -> int:
        """All characters; most of them are one byte."""
        return sum(len(document.text) for document in self._all())

    def stamp(self) -> list[list[Any]]:
        """The Python release."""
        return [[PYTHON_DOCS, platform.python_version(), platform.python_implementation()]]
