"""Sources of text: files of several formats, TensorFlow Datasets and the Hugging Face hub behind one interface."""

from memjax.data.sources.base import Block, CorpusError, Document, Source
from memjax.data.sources.documents import CountingSource, DocumentError
from memjax.data.sources.files import corpus_files
from memjax.data.sources.opening import open_source, parse_mixture
from memjax.data.sources.python_docs import PYTHON_DOCS

__all__ = [
    "PYTHON_DOCS",
    "Block",
    "CorpusError",
    "CountingSource",
    "Document",
    "DocumentError",
    "Source",
    "corpus_files",
    "open_source",
    "parse_mixture",
]
