"""Texts for instruments: texts of T tokens, held-out, of another corpus, or random; and their
batches.

Shapes: N token of a row, T token of a text, B text of a batch.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from memjax.data import (
    RowsError,
    Tokenizer,
    evenly_spaced,
    load_tokenizer,
    open_rows,
    open_source,
    pack,
)
from memjax.errors import MemjaxError
from memjax.inference.codec import MemoryCodec
from memjax.objectives import SpecialIds
from memjax.progress import track
from memjax.sharding import batch_shards, gather, local_mesh, on_local_devices, share

if TYPE_CHECKING:
    from memjax.inference.trained_model import TrainedModel


class TextsError(MemjaxError):
    """There are no texts, or they do not match this model; the message names their origin."""


def with_data(model: TrainedModel, data: str | os.PathLike = "") -> TrainedModel:
    """Return a model that reads the text of a folder, with the tokenizer there.

    Args:
      model: the model.
      data: a folder that `prepare` wrote; empty for the model's own.

    Raises:
      CheckpointError: the tokenizer is another than the model's, or has more entries than its token
        table.
      TokenizerError: the folder has no tokenizer that can be read.
    """
    folder = Path(data or model.data)
    if data or model.tokenizer is None:
        model = model.with_tokenizer(load_tokenizer(folder), folder)
    return dataclasses.replace(model, data=folder)


def held_out(
    data: str | os.PathLike,
    length: int,
    limit: int,
    tokenizer: Tokenizer,
    split: str = "validation",
    packing: str = "",
) -> np.ndarray:
    """Return up to `limit` texts [*, T] of a split, spread evenly over its rows, which are split
    into texts from their start. Texts of padding alone are left out.

    Args:
      data: a folder that `prepare` wrote.
      length: T.
      limit: texts, at most.
      tokenizer: the model's.
      split: `validation` or `train`.
      packing: the model's config.data.packing; empty reads rows of any.

    Raises:
      RowsError: there are no rows, or they have another tokenizer or padding on the other side.
      TextsError: the rows are shorter than a text.
    """
    data = Path(data)
    found = sorted(
        (int(path.name.removeprefix("rows-")), path)
        for path in data.glob("rows-*")
        if path.is_dir()
    )
    if not found:
        raise RowsError(f"{data}: there are no rows here; give the data folder of a workdir")
    fitting = [(row_tokens, path) for row_tokens, path in found if row_tokens >= length]
    if not fitting:
        raise TextsError(
            f"{data}: rows are of {found[-1][0]} tokens at most, and a text of this model has"
            f" {length}"
        )
    # Leave out as little as possible of a row.
    row_tokens, path = min(fitting, key=lambda pair: (pair[0] % length, pair[0]))
    rows, pieces = open_rows(path, split, tokenizer.fingerprint), row_tokens // length
    chosen = evenly_spaced(len(rows) * pieces, limit)
    if not chosen:
        raise TextsError(f"{path}: no {split} rows")
    rows.check_side(packing)
    found = np.stack([rows[i // pieces][i % pieces * length :][:length] for i in chosen])
    found = found[(found != tokenizer.pad_id).any(axis=1)].astype(np.int32)
    TextsError.require(len(found), f"{path}: only padding in {len(chosen)} texts of {split} rows")
    return found


def of_corpus(corpus: str, length: int, limit: int, tokenizer: Tokenizer) -> np.ndarray:
    """Return the first `limit` texts [*, T] of a corpus, tokenized by `tokenizer`: documents are
    joined and split; nothing else of it is read.

    Raises:
      CorpusError: it cannot be read.
      TextsError: it is shorter than one text.
    """
    documents = (tokenizer.encode(document.text) for document in open_source(corpus))
    texts = list(
        itertools.islice(pack(documents, length, tokenizer.eos_id, tokenizer.vocabulary), limit)
    )
    if not texts:
        raise TextsError(f"{corpus}: holds less than one text of {length} tokens")
    return np.stack(texts).astype(np.int32)


def random(count: int, length: int, vocabulary: int, ids: SpecialIds, seed: int = 0) -> np.ndarray:
    """Return `count` texts [count, T] of tokens drawn uniformly from those that stand for text;
    they are also the labels.
    """
    generator = np.random.default_rng(seed)
    return generator.integers(
        ids.first_content, ids.end_content(vocabulary), (count, length), dtype=np.int32
    )


def check_texts(system: MemoryCodec, texts: np.ndarray) -> None:
    """Raise TextsError if there are no texts or they have another length."""
    if not len(texts):
        raise TextsError("texts: none, expected at least one text to measure")
    if texts.shape[1:] != (system.length,):
        raise TextsError(
            f"texts of shape {texts.shape}: expected texts of {system.length} tokens, [N,"
            f" {system.length}]"
        )


def batches(texts: np.ndarray, size: int, name: str) -> Iterator[np.ndarray]:
    """Yield `texts` [*, T] in batches of exactly `size`, or of all if there are fewer.

    Both numbers are rounded up to a multiple of the devices that split a batch. The last batch is
    filled up with its own first text. `name` names the progress bar.
    """
    mesh = local_mesh()
    shards = batch_shards(mesh) if mesh else 1
    size = -(-min(size, len(texts)) // shards) * shards
    for start in track(range(0, len(texts), size), name):
        batch = texts[start : start + size]
        yield (
            np.concatenate([batch, np.repeat(batch[:1], size - len(batch), axis=0)])
            if len(batch) < size
            else batch
        )


def each_batch(
    function: Callable[[np.ndarray], Any], texts: np.ndarray, size: int, name: str
) -> Iterator[Any]:
    """Yield `function` of each of `batches`, on the host, fetched while the next is computed.

    All devices of this process split a batch.
    """

    def compute(batch: np.ndarray) -> Any:
        with on_local_devices():
            return function(batch)

    results = map(compute, batches(texts, size, name))
    for result, _ in itertools.pairwise(itertools.chain(results, [None])):
        yield jax.device_get(result)


def over_batches(
    function: Callable[[np.ndarray], Any],
    texts: np.ndarray,
    size: int,
    name: str,
    dtype: Any = None,
) -> Any:
    """Return `function` of all texts on the host, computed batch by batch.

    Processes that divide work compute their shares of the texts, and each returns all.

    Args:
      function: a function from a batch [B, ...] to an array [B, ...], or to a tree of them.
      texts: [N, ...].
      size: B, at most; all batches are of one size, so that `function` is compiled once.
      name: names the progress bar.
      dtype: of the arrays that are returned, [N, ...] each; by default their own.
    """
    rows = share(len(texts))
    parts = list(each_batch(function, texts[rows.start : rows.stop], size, name)) if rows else []

    def joined(*part: np.ndarray) -> np.ndarray:
        return np.concatenate(part, dtype=dtype)[: len(rows)]

    own = jax.tree.map(joined, *parts) if parts else None
    first, *others = (part for part in gather(own) if part is not None)
    return jax.tree.map(lambda *part: np.concatenate(part), first, *others) if others else first
