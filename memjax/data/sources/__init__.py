"""Sources of text: files, TensorFlow Datasets and the Hugging Face hub behind one interface."""

from memjax.data.sources.base import CorpusError, Document, DocumentError
from memjax.data.sources.opening import open_source, parse_mixture

__all__ = ["CorpusError", "Document", "DocumentError", "open_source", "parse_mixture"]
