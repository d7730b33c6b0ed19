"""Sources of text: files, TensorFlow Datasets and the Hugging Face hub behind one interface."""

from memjax.data.sources.base import Block, CorpusError, Document, DocumentError, Source
from memjax.data.sources.files import corpus_files
from memjax.data.sources.opening import open_source, parse_mixture
from memjax.data.sources.python_docs import PYTHON_DOCS

__all__ = [
    "PYTHON_DOCS",
    "Block",
    "CorpusError",
    "Document",
    "DocumentError",
    "Source",
    "corpus_files",
    "open_source",
    "parse_mixture",
]
