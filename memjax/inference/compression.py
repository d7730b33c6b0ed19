"""Compression: chunks of text to a store of their memories.

Shapes: B chunk or text of a batch, N chunk, L token of a chunk, K vector of a chunk, E its width, H
chunk that is decoded together, G group of these, T = H * L tokens of a group.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from memjax.checkpoints.identity import encoder_settings, fingerprint
from memjax.checkpoints.store import MemoryStore
from memjax.checkpoints.store_records import NAME_LIMIT, EncoderProvenance, StoredDocument
from memjax.inference.chunking import Chunks
from memjax.inference.texts import each_batch
from memjax.models import Encoder
from memjax.models.memory import VECTORS, Memories, bank


def provenance_of(
    encoder: Encoder,
    params: Any,
    family: str,
    stage: str,
    step: int,
    tokenizer: str,
    checkpoint: str = "",
) -> EncoderProvenance:
    """Return the provenance of an encoder's memories; hashes all its parameters.

    Args:
      encoder: the encoder.
      params: its parameters.
      family: family of the stage that trained it.
      stage: name of that stage.
      step: number of steps of that stage.
      tokenizer: fingerprint of its tokenizer.
      checkpoint: path of that stage, a hint for messages; left out if a store cannot hold it.
    """
    model = encoder.config
    chunk = jax.ShapeDtypeStruct((1, model.chunk_length), jnp.int32)
    shape: Any = jax.eval_shape(functools.partial(encoder.apply, {"params": params}), chunk)
    return EncoderProvenance(
        family=family,
        stage=stage,
        step=step,
        settings=encoder_settings(model),
        sha256=fingerprint(params),
        tokenizer=tokenizer,
        vocabulary=encoder.vocab_size,
        chunk_length=model.chunk_length,
        leaves={VECTORS: (shape.shape[1], shape.shape[2])},
        checkpoint=checkpoint if len(checkpoint) <= NAME_LIMIT and checkpoint.isprintable() else "",
    )


def compress(
    encoder: Encoder,
    params: Any,
    provenance: EncoderProvenance,
    pad_id: int,
    chunks: Chunks,
    dtype: str,
    batch: int = 256,
    fill_id: int | None = None,
) -> MemoryStore:
    """Return a store of the memories of chunks.

    Of each memory the first vectors are kept, as many as `provenance` has (`of_vectors`). Chunks of
    fewer tokens than the encoder reads are padded (`of_length`). A batch is fetched and rounded
    while the next is computed.

    Args:
      encoder: the encoder that reads the chunks.
      params: its parameters.
      provenance: the encoder and its tokenizer.
      pad_id: the tokenizer's id of padding.
      chunks: text in tokens of that tokenizer.
      dtype: dtype of the store.
      batch: chunks per batch.
      fill_id: the id that an encoder reads in place of padding, if its training rows had none.

    Raises:
      StoreError: there is no such dtype, or a memory is not finite.
    """
    store = MemoryStore(provenance, dtype)
    empty = bank(np.empty((0, *provenance.leaves[VECTORS]), np.float32))
    for document in chunks.documents:
        store.append(document, empty, np.empty((0, 4), np.int64))
    done, vectors = 0, provenance.leaves[VECTORS][0]
    encode = functools.partial(_encode, encoder, pad_id, params)
    tokens = chunks.tokens
    if fill_id is not None:
        tokens = np.where(tokens == pad_id, np.int32(fill_id), tokens)
    tokens = padded(tokens, encoder.config.chunk_length, pad_id)
    for memories in each_batch(encode, tokens, batch, "compress"):
        found = np.asarray(memories, np.float32)[: len(chunks) - done, :vectors]
        _append(store, found, chunks.spans[done : done + len(found)])
        done += len(found)
    return store


def document_of(memories: Memories, provenance: EncoderProvenance) -> MemoryStore:
    """Return memories as a store of one document of full chunks."""
    length, count = provenance.chunk_length, memories.count
    spans = np.zeros((count, 4), np.int64)
    spans[:, 0], spans[:, 1] = length * np.arange(count), length
    store = MemoryStore(provenance, "float32")
    store.append(StoredDocument("memories", length * count, 0, 0), memories, spans)
    return store


def _append(store: MemoryStore, memories: np.ndarray, spans: np.ndarray) -> None:
    """Append memories of chunks of several documents in `store`."""
    starts = np.flatnonzero(np.diff(spans[:, 0])) + 1
    for memory, span in zip(np.split(memories, starts), np.split(spans, starts), strict=True):
        store.append(int(span[0, 0]), bank(memory), span[:, 1:])


def padded(
    tokens: Int[np.ndarray, "*any l"], length: int, pad_id: int
) -> Int[np.ndarray, "*any L"]:
    """Return chunks with padding behind their tokens, up to L."""
    room = [(0, 0)] * (tokens.ndim - 1) + [(0, length - tokens.shape[-1])]
    return np.pad(tokens, room, constant_values=pad_id)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(encoder: Encoder, pad_id: int, params: Any, tokens: jax.Array) -> Any:
    """Return memories [B, K, E] of chunks [B, L]."""
    return encoder.apply({"params": params}, tokens, tokens != pad_id)


def groups(documents: Int[np.ndarray, " N"], held: int) -> Int[np.ndarray, "G H"]:
    """Return the numbers of the chunks that are decoded together: `held` consecutive ones of one
    document; -1 is none.

    Args:
      documents: the document of every chunk.
      held: H.
    """
    numbers = np.arange(len(documents))
    first = np.concatenate([[True], documents[1:] != documents[:-1]])[: len(documents)]
    place = numbers - np.maximum.accumulate(np.where(first, numbers, 0))
    group = np.cumsum(place % held == 0) - 1
    found = np.full((int(group[-1]) + 1 if len(group) else 0, held), -1)
    found[group, place % held] = numbers
    return found


def grouped(values: np.ndarray, picked: Int[np.ndarray, "B H"], fill: Any) -> np.ndarray:
    """Select the values of some groups [B, H, ...] from [N, ...], one value per chunk; `fill`
    stands for missing chunks.
    """
    there = (picked >= 0).reshape(*picked.shape, *[1] * (values.ndim - 1))
    return np.where(there, values[np.maximum(picked, 0)], np.asarray(fill, values.dtype))
