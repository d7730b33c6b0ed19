"""Memories of documents on disk: compressed once by a trained stage, used and expanded later."""

from memjax.store.encoding import Compressor, Loss, compress, open_compressor, rounding_loss
from memjax.store.expanding import accuracy_against, expand, text_of
from memjax.store.folder import StoredDocument
from memjax.store.header import Header, Origin, StoreError, parse_header
from memjax.store.rounding import DTYPES
from memjax.store.sources import Chunks, Source, cut, read_sources
from memjax.store.store import MemoryStore

__all__ = [
    "DTYPES",
    "Chunks",
    "Compressor",
    "Header",
    "Loss",
    "MemoryStore",
    "Origin",
    "Source",
    "StoreError",
    "StoredDocument",
    "accuracy_against",
    "compress",
    "cut",
    "expand",
    "open_compressor",
    "parse_header",
    "read_sources",
    "rounding_loss",
    "text_of",
]
