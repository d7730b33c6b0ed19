"""Documents of text files with their place in the file, cut into chunks of tokens.

Shapes: N chunk, L token of a chunk.
"""

import dataclasses
import gzip
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from memjax.data import Tokenizer, read_corpus
from memjax.data.corpora import PYTHON_DOCS, corpus_files
from memjax.store.folder import StoredDocument
from memjax.store.header import NAME_LIMIT, SPAN_FIELDS, StoreError


class Source(NamedTuple):
    """A text and where it comes from."""

    name: str
    """The file's, without its folder, and the document's number or line in it."""
    text: str
    start: int
    """Byte of the file, unpacked, where the text stands; 0 where it does not stand there as it is (JSON lines, the Python prose)."""


def read_sources(paths: Iterable[str]) -> Iterator[Source]:
    """The documents of text files as `memjax.data.read_corpus` reads them: long text files are several.

    Args:
      paths: files, folders or globs, or `python-docs`.

    Raises:
      CorpusError: a path matches nothing, or a file cannot be read.
    """
    for path in paths:
        if path == PYTHON_DOCS:
            yield from (Source(_label(document.id), document.text, 0) for document in read_corpus(path))
            continue
        for file in corpus_files(path):
            yield from _of_file(file)


def _of_file(file: Path) -> Iterator[Source]:
    documents = list(read_corpus(str(file)))
    plain = file.name.endswith((".txt", ".txt.gz"))
    raw = b"" if not plain else gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    end = 0
    for document in documents:
        text = document.text.encode()
        # Documents stand there in order; between them are separators and white space.
        start = max(raw.find(text, end), 0) if plain else 0
        end = start + len(text)
        yield Source(_label(document.id), document.text, start)


def _label(name: str) -> str:
    """A document's id without folders and without what a terminal would obey."""
    name = name.rpartition(os.sep)[2] or name
    return "".join(c if c.isprintable() else "?" for c in name)[-NAME_LIMIT:]


@dataclasses.dataclass(frozen=True, eq=False)
class Chunks:
    """Texts cut for an encoder."""

    documents: tuple[StoredDocument, ...]
    tokens: Int[np.ndarray, "N L"]
    """A document's last chunk is filled up with padding."""
    spans: Int[np.ndarray, "N 5"]
    """As in a store."""

    def __len__(self) -> int:
        return len(self.tokens)


def cut(sources: Iterable[Source], tokenizer: Tokenizer, length: int, limit: int = 0) -> Chunks:
    """Documents as chunks of `length` tokens; none holds tokens of two.

    Args:
      sources: texts.
      tokenizer: the encoder's.
      length: L.
      limit: chunks, at most, after which no more is read; 0 is all.

    Raises:
      StoreError: there is no text.
    """
    documents: list[StoredDocument] = []
    parts: list[np.ndarray] = []
    spans: list[np.ndarray] = []
    left = limit or 2**62
    for source in sources:
        ids = tokenizer.encode(source.text)
        ends = np.concatenate([[0], np.cumsum(tokenizer.byte_lengths[ids], dtype=np.int64)])
        number, chunks = len(documents), min(-(-len(ids) // length), left)
        documents.append(StoredDocument(source.name, len(ids), int(ends[-1]), source.start))
        first = np.arange(chunks, dtype=np.int64) * length
        last = np.minimum(first + length, len(ids))
        of = np.full(chunks, number, np.int64)
        spans.append(np.stack([of, first, last - first, source.start + ends[first], source.start + ends[last]], axis=1))
        padded = np.full(chunks * length, tokenizer.pad_id, np.int32)
        padded[: min(len(ids), chunks * length)] = ids[: chunks * length]
        parts.append(padded.reshape(chunks, length))
        left -= chunks
        if left <= 0:
            break
    if not parts:
        raise StoreError("there is no text to compress: nothing but white space was found in these files")
    return Chunks(tuple(documents), np.concatenate(parts), np.concatenate(spans).reshape(-1, len(SPAN_FIELDS)))
