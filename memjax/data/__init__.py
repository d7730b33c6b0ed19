"""Text to rows of tokens: corpora, the vocabulary, packing, and batches that are a function of (seed, step).

Names that need JAX are imported when they are first used: processes that prepare data do without.
"""

import importlib
from typing import TYPE_CHECKING, Any

from memjax.data.corpora import CorpusError, Document, is_validation, python_docs, read_corpus
from memjax.data.layouts import document_ids, pack
from memjax.data.prepare import Prepared, prepare
from memjax.data.rows import MixedRows, Rows, RowsError, open_rows, write_rows
from memjax.data.tokenizer import Tokenizer, TokenizerError

if TYPE_CHECKING:
    from memjax.data.memories import Memories, MemoriesError, open_memories, write_memories
    from memjax.data.pipeline import TrainBatches, check_attributions, evaluation_batches, open_attributions, spread

_LATER = {
    "Memories": "memories",
    "MemoriesError": "memories",
    "TrainBatches": "pipeline",
    "check_attributions": "pipeline",
    "evaluation_batches": "pipeline",
    "open_attributions": "pipeline",
    "open_memories": "memories",
    "spread": "pipeline",
    "write_memories": "memories",
}

__all__ = [
    "CorpusError",
    "Document",
    "Memories",
    "MemoriesError",
    "MixedRows",
    "Prepared",
    "Rows",
    "RowsError",
    "Tokenizer",
    "TokenizerError",
    "TrainBatches",
    "check_attributions",
    "document_ids",
    "evaluation_batches",
    "is_validation",
    "open_attributions",
    "open_memories",
    "open_rows",
    "pack",
    "prepare",
    "python_docs",
    "read_corpus",
    "spread",
    "write_memories",
    "write_rows",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f"memjax.data.{_LATER[name]}"), name)
    raise AttributeError(f"module 'memjax.data' has no attribute {name!r}; its names are {', '.join(__all__)}")


def __dir__() -> list[str]:
    return list(__all__)
