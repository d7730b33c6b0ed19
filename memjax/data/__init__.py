"""Text to rows of tokens: corpora, the vocabulary, packing, and batches that are a function of (seed, step)."""

from memjax.data.corpora import CorpusError, Document, is_validation, python_docs, read_corpus
from memjax.data.memories import Memories, MemoriesError, open_memories, write_memories
from memjax.data.pipeline import TrainBatches, check_attributions, evaluation_batches, open_attributions, spread
from memjax.data.prepare import Prepared, prepare
from memjax.data.rows import Rows, RowsError, open_rows, pack, write_rows
from memjax.data.tokenizer import Tokenizer, TokenizerError

__all__ = [
    "CorpusError",
    "Document",
    "Memories",
    "MemoriesError",
    "Prepared",
    "Rows",
    "RowsError",
    "Tokenizer",
    "TokenizerError",
    "TrainBatches",
    "check_attributions",
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
