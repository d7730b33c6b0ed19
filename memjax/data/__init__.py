"""Text to rows of tokens: corpora, tokenizers, packing, and batches by (seed, step).

Names that need JAX are imported at their first use, so processes that prepare data do without it.
"""

from etils import epy

from memjax.data.memories import MemoriesError, MemoryShards, RowMemories, open_memories
from memjax.data.packing import document_ids, pack
from memjax.data.prepare import Prepared, prepare
from memjax.data.rows import MixedRows, Rows, RowsError, open_rows
from memjax.data.sources import CorpusError, Document, open_source
from memjax.data.sources.lines import text_lines
from memjax.data.sources.python_docs import python_docs
from memjax.data.splits import is_validation
from memjax.data.tokenizers import Tokenizer, TokenizerError, load_tokenizer, train_tokenizer

with epy.lazy_api_imports(globals()):
    from memjax.data.pipeline import (
        TrainBatches,
        check_attributions,
        evaluation_batches,
        evenly_spaced,
        open_attributions,
    )

__all__ = [
    "CorpusError",
    "Document",
    "MemoriesError",
    "MemoryShards",
    "MixedRows",
    "Prepared",
    "RowMemories",
    "Rows",
    "RowsError",
    "Tokenizer",
    "TokenizerError",
    "TrainBatches",
    "check_attributions",
    "document_ids",
    "evaluation_batches",
    "evenly_spaced",
    "is_validation",
    "load_tokenizer",
    "open_attributions",
    "open_memories",
    "open_rows",
    "open_source",
    "pack",
    "prepare",
    "python_docs",
    "text_lines",
    "train_tokenizer",
]
