"""Compression of texts into a store of several files, which resumes where it was stopped.

Processes divide the parts: each writes its own.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from memjax.checkpoints.store import MemoryStore
from memjax.checkpoints.store_folder import StoreFolder
from memjax.data import open_source
from memjax.data.blocks import digest, split_blocks
from memjax.data.sources.base import Block, Source
from memjax.inference.chunking import Chunks, cut, documents_of
from memjax.inference.trained_model import TrainedModel
from memjax.progress import track
from memjax.sharding import leads, own, wait

PART_BYTES = 1_000_000
"""Bytes of text per part, about; more where there would be more than `blocks.MOST_BLOCKS` parts."""


class TextParts:
    """Texts in parts that depend on the files alone.

    Args:
      paths: files, folders or globs, as `memjax.data.open_source` reads them.

    Raises:
      CorpusError: a path matches nothing, or a file cannot be read.
    """

    def __init__(self, paths: Sequence[str]):
        sources = [open_source(path) for path in paths]
        self._blocks: list[tuple[Source, Block]] = [
            (source, block) for source in sources for block in split_blocks(source, PART_BYTES)
        ]
        self.digest = digest([[source.name, source.mtime_signature()] for source in sources])

    def __len__(self) -> int:
        """Return the number of parts."""
        return len(self._blocks)

    def chunks(self, number: int, model: TrainedModel, length: int) -> Chunks | None:
        """Return a part as chunks of `length` tokens; None if it holds white space alone."""
        source, block = self._blocks[number]
        found = list(documents_of(source.read(block)))
        side = model.padding_side
        return cut(found, model.required_tokenizer, length, side=side) if found else None


def compress_parts(
    model: TrainedModel,
    texts: TextParts,
    out: str | os.PathLike,
    *,
    dtype: str = "bfloat16",
    batch: int = 256,
    vectors: int | None = None,
    chunk_length: int | None = None,
) -> None:
    """Encode texts into the parts of a store that are missing.

    Args:
      model: a model with an encoder and a tokenizer.
      texts: the texts.
      out: a new or empty folder, one that was begun with the same texts, or that of a store, which
        gets further parts.
      dtype: as in `TrainedModel.compress`.
      batch: as there.
      vectors: as there.
      chunk_length: as there.

    Raises:
      CheckpointError: the model has no encoder or no tokenizer.
      CorpusError: a file cannot be read.
      StoreError: the folder holds something else or memories of another encoder, there is no text,
        or as `TrainedModel.compress`.
    """
    provenance = model.stored_as(vectors, chunk_length)
    empty, length = MemoryStore(provenance, dtype), provenance.chunk_length
    if not leads():
        wait("the store is begun")
    folder = StoreFolder.begin(Path(out), provenance, dtype, texts.digest, len(texts))
    if leads():
        wait("the store is begun")
    todo = folder.todo()
    wait("no part is written yet")
    for number in track(own(todo), "parts"):
        chunks = texts.chunks(number - folder.parts.start, model, length)
        how = {"dtype": dtype, "batch": batch, "vectors": vectors}
        store = empty if chunks is None else model.compress(chunks, **how)
        folder.write(number, store.contents)
    wait("all parts are written")
    if leads():
        folder.finish()
    wait("the store is whole")
