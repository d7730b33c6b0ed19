"""Documents of text files with their place in the file, cut into chunks of tokens.

Shapes: N chunk, L token of a chunk.
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from memjax.checkpoints.store_records import (
    NAME_LIMIT,
    SPAN_FIELDS,
    StoredDocument,
    StoreError,
)
from memjax.data import Document, Tokenizer, open_source


class Source(NamedTuple):
    """A text and its origin."""

    name: str
    """The name of the file, without its folder, and the number or line of the document in it."""
    text: str
    start: int
    """The byte of the unpacked file at which the text begins; 0 if the file does not contain the
    text verbatim (JSON lines, Python's own prose)."""


def read_sources(paths: Sequence[str]) -> Iterator[Source]:
    """Yield the documents of text files as `memjax.data.open_source` reads them; a long text file
    has several.

    Args:
      paths: files, folders or globs, or `python-docs`.

    Raises:
      CorpusError: a path matches nothing, or a file cannot be read.
      StoreError: there is no text in any of them.
    """
    found = False
    for path in paths:
        for source in documents_of(open_source(path)):
            yield source
            found = True
    StoreError.require(found, f"{', '.join(paths)}: nothing but white space, expected text.")


def documents_of(documents: Iterable[Document]) -> Iterator[Source]:
    """Yield documents of a corpus under the names that a store keeps."""
    for document in documents:
        yield Source(_label(document.id), document.text, document.start)


def _label(name: str) -> str:
    """Return the id of a document without folders and without control characters of a terminal."""
    name = name.rpartition(os.sep)[2] or name
    return "".join(c if c.isprintable() else "?" for c in name)[-NAME_LIMIT:]


@dataclasses.dataclass(frozen=True, eq=False)
class Chunks:
    """Texts split for an encoder."""

    documents: tuple[StoredDocument, ...]
    tokens: Int[np.ndarray, "N L"]
    """The last chunk of a document is filled up with padding."""
    spans: Int[np.ndarray, "N 5"]
    """Spans as in a store."""

    def __len__(self) -> int:
        return len(self.tokens)


def cut(
    sources: Iterable[Source],
    tokenizer: Tokenizer,
    length: int,
    limit: int = 0,
    side: str = "right",
) -> Chunks:
    """Split documents into chunks of `length` tokens; no chunk holds tokens of two documents.

    Args:
      sources: texts.
      tokenizer: the tokenizer of the encoder.
      length: L.
      limit: the largest number of chunks, after which reading stops; 0 is all.
      side: the side of padding in the last chunk of a document.

    Raises:
      StoreError: there is no text.
    """
    documents: list[StoredDocument] = []
    parts: list[np.ndarray] = []
    spans: list[np.ndarray] = []
    left = limit or 2**62
    for source in sources:
        ids = tokenizer.encode(source.text)
        ends = np.concatenate([[0], tokenizer.ends(source.text, ids)])
        first = np.arange(0, len(ids), length)[:left]
        last = np.minimum(first + length, len(ids))
        number = np.full_like(first, len(documents))
        begin, end = source.start + ends[first], source.start + ends[last]
        spans.append(np.stack([number, first, last - first, begin, end], axis=1))
        documents.append(StoredDocument(source.name, len(ids), int(ends[-1]), source.start))
        padded = np.full((len(first), length), tokenizer.pad_id, np.int32)
        padded.flat[: len(ids)] = ids[: padded.size]
        if side == "left" and len(first):
            padded[-1] = np.roll(padded[-1], length - int(last[-1] - first[-1]))
        parts.append(padded)
        left -= len(first)
        if left <= 0:
            break
    StoreError.require(any(map(len, parts)), "texts: no token in all of them, expected text.")
    return Chunks(
        tuple(documents), np.concatenate(parts), np.concatenate(spans).reshape(-1, len(SPAN_FIELDS))
    )
