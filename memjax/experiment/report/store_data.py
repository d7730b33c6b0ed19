"""Contents of the page of a store: the text that memories give back, the original beside it, and
both as the compact data of the page's script.

Shapes: N chunk, L token, n token of all chunks, S chunk of a sample.
"""

import base64
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from memjax.checkpoints import CheckpointError
from memjax.checkpoints.store import MemoryStore
from memjax.checkpoints.store_records import StoreError
from memjax.data import CorpusError, Tokenizer
from memjax.inference import GenerationError, TrainedModel
from memjax.inference.chunking import Chunks, cut, read_sources
from memjax.inference.expansion import rows_of
from memjax.inference.neighbours import Neighbours

SAMPLE = 512
"""Chunks that are recalled among all memories, at most."""
FILES_LIMIT = 64
"""Files that are looked for beside a store, at most."""
_BATCH = 64
_PART = re.compile(r"[#:]\d+$")
"""The end of a document's name behind the name of its file."""
_ESCAPED = re.compile(r"(\\x[0-9a-f]{2})+")


class GivenBack(NamedTuple):
    """The tokens of every chunk as memories give them back."""

    tokens: Int[np.ndarray, "N L"]
    how: str
    """From which memories they come, as words."""


class Original(NamedTuple):
    """The tokens of the text that was compressed, where it is there."""

    tokens: Int[np.ndarray, "N L"]
    there: Bool[np.ndarray, " N"]


class Sample(NamedTuple):
    """Some chunks, and their tokens as they are recalled among all memories."""

    chunks: Int[np.ndarray, " S"]
    tokens: Int[np.ndarray, "S L"]


def give_back(model: TrainedModel, store: MemoryStore) -> GivenBack:
    """Return what the memories of a store give back, by reconstruction, or else by recall.

    Raises:
      CheckpointError: no decoder of the model reads memories of a text.
      StoreError: the model cannot reconstruct from memories alone.
    """
    try:
        decoder = model.reconstructor
        codec = decoder.codec()
        found = model.reconstruct_tokens(store, batch=_BATCH)
    except (CheckpointError, StoreError):
        if not model.recalls:
            raise
        found = model.recall_tokens(store, range(len(store)), batch=_BATCH, alone=True)
        return GivenBack(found, "each chunk from its own memory")
    how = "each chunk from its own memory"
    if codec.held > 1:
        how = f"{codec.held} chunks at a time, from their memories alone"
    if decoder.untrained_objective:
        how += f", by {decoder.untrained_objective}, on which stage {decoder.stage} was not trained"
    return GivenBack(found, how)


def recall_sample(model: TrainedModel, store: MemoryStore) -> tuple[Sample | None, str]:
    """Return evenly spaced chunks recalled among all memories, or None and the reason as words."""
    if not model.recalls or not len(store):
        return None, ""
    step = -(-len(store) // SAMPLE)
    chunks = range(0, len(store), step)
    try:
        return Sample(np.array(chunks), model.recall_tokens(store, chunks, batch=_BATCH)), ""
    except GenerationError as error:
        return None, f"Chunks were not recalled among all memories: {error}"


def read_original(model: TrainedModel, store: MemoryStore, against: str) -> Original:
    """Return the tokens of the text in a file, folder or glob, by the documents of the store.

    Raises:
      CorpusError: it cannot be read.
      StoreError: it holds none of the store's documents.
    """
    source = model.chunks(against, chunk_length=store.provenance.chunk_length)
    original = _original(store, source)
    names = ", ".join(sorted({_file_of(document.name) for document in store.documents})[:3])
    StoreError.require(
        original.there.any(),
        f"{against}: holds none of the texts of the store ({names}), expected the file that was"
        " compressed. Leave it out, or give that.",
    )
    return original


def find_original(
    model: TrainedModel, store: MemoryStore, folder: Path
) -> tuple[Original | None, str]:
    """Return the text if the files of a folder with the names of the store's documents are cut as
    the store is, and a sentence about what was found.

    A store may come from anywhere: files are chosen among those in the folder, by their names
    alone, and no path of the store is opened.
    """
    names = {_file_of(document.name) for document in store.documents}
    if not 0 < len(names) <= FILES_LIMIT:
        return None, ""
    shown = ", ".join(sorted(names)[:3])
    files = sorted(file for file in folder.iterdir() if file.name in names and file.is_file())
    if {file.name for file in files} != names:
        return None, f"The text that was compressed ({shown}) is not beside the store."
    tokenizer, length = model.required_tokenizer, store.provenance.chunk_length
    try:
        sources = read_sources([str(file) for file in files])
        original = _original(store, cut(sources, tokenizer, length, 0, model.padding_side))
    except (CorpusError, StoreError) as error:
        return None, f"The text beside the store ({shown}) cannot be read: {error}"
    if original.there.all():
        return original, f"Compared with {shown}, which lies beside the store and is cut as it is."
    return None, f"The text beside the store ({shown}) is another than the one compressed."


def _file_of(name: str) -> str:
    return _PART.sub("", name)


def _original(store: MemoryStore, source: Chunks) -> Original:
    rows = rows_of(store, source)
    same = (store.spans[:, 2:] == source.spans[rows, 2:]).all(axis=1)
    return Original(source.tokens[rows], (rows >= 0) & same)


def wrong_tokens(
    tokens: Int[np.ndarray, "N L"], other: Int[np.ndarray, "N L"]
) -> Int[np.ndarray, " N"]:
    """Return how many tokens of each chunk differ; padding, which both have, never does."""
    return (tokens != other).sum(axis=1)


def page_data(
    store: MemoryStore,
    tokenizer: Tokenizer,
    side: str,
    given: Int[np.ndarray, "N L"],
    original: Original | None,
    sample: Sample | None,
    nearest: Neighbours | None,
) -> dict[str, Any]:
    """Return the data of the page's script, for JSON.

    Tokens are numbers of `pieces`, in one row without padding, as base64; a chunk without its
    original has the number behind the last piece there. Places are differences to those of the
    chunk before.

    Args:
      store: the store.
      tokenizer: its tokenizer.
      side: the side of padding in chunks.
      given: what the memories give back.
      original: the text that was compressed.
      sample: chunks recalled among all memories.
      nearest: the nearest memories of each.
    """
    counts = store.spans[:, 2]
    rows = {"given": _flat(given, counts, side)}
    if original is not None:
        rows["text"] = _flat(original.tokens, counts, side)
    if sample is not None:
        rows["all"] = _flat(sample.tokens, counts[sample.chunks], side)
    ids, places = np.unique(np.concatenate([*rows.values()]), return_inverse=True)
    split = np.split(places, np.cumsum([len(row) for row in rows.values()])[:-1])
    tokens = dict(zip(rows, split, strict=True))
    if original is not None:
        tokens["text"] = np.where(np.repeat(original.there, counts), tokens["text"], len(ids))
    kind = np.dtype("<u2" if len(ids) < 2**16 else "<u4")
    document, token, _, first, last = store.spans.T
    return {
        "pieces": [spelling(tokenizer, i) for i in ids.tolist()],
        "wide": kind.itemsize == 4,
        "tokens": {name: _base64(row.astype(kind)) for name, row in tokens.items()},
        "counts": counts.tolist(),
        "names": [each.name for each in store.documents],
        "document": _steps(document),
        "token": _steps(token),
        "first": _steps(first),
        "bytes": (last - first).tolist(),
        "memory": store.nbytes // max(len(store), 1),
        "sample": [] if sample is None else _steps(sample.chunks),
        "nearest": None
        if nearest is None
        else {
            "top": nearest.chunks.shape[1],
            "chunks": _base64(nearest.chunks.astype("<u4")),
            "cosines": _base64(np.round(100 * nearest.cosines).astype("i1")),
        },
    }


def spelling(tokenizer: Tokenizer, token: int) -> str | list[int]:
    """Return the text of a token, or its bytes if these are parts of a character."""
    piece = tokenizer.pieces([token])[0]
    if _ESCAPED.fullmatch(piece) and tokenizer.decode([token], start=False) != piece:
        return list(bytes.fromhex(piece.replace("\\x", "")))
    return piece


def _flat(
    tokens: Int[np.ndarray, "N L"], counts: Int[np.ndarray, " N"], side: str
) -> Int[np.ndarray, " n"]:
    """Return the tokens of all chunks in one row, without padding."""
    real = np.arange(tokens.shape[1]) < counts[:, None]
    return tokens[real[:, ::-1] if side == "left" else real]


def _steps(values: np.ndarray) -> list[int]:
    return np.diff(values, prepend=0).tolist()


def _base64(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
