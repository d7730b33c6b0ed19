"""Objectives of a memory model: one call of the encoder and one of the decoder for all that are asked.

Where a batch brings the memories of its chunks from disk, the encoder is not called.

Shapes: B row, N = C * L tokens of a row, C chunk, X chunk to decode, L token, M chunk to encode, K vector, E encoder width.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from memjax.config import Stage
from memjax.models import MemoryModel
from memjax.objectives.requests import Request, SpecialIds, join, make_request, to_encode
from memjax.objectives.terms import Batch, Scores, chunked


def score(
    module: MemoryModel,
    variables: Mapping[str, Any],
    batch: Batch,
    names: Sequence[str],
    ids: SpecialIds,
    stage: Stage,
    key: jax.Array | None,
) -> dict[str, Scores]:
    """Every named objective, token by token."""
    chunks_BCL = chunked(batch.tokens, module.config.chunk_length)
    requests = _requests(chunks_BCL, names, ids, stage)
    request = join(list(requests.values()), chunks_BCL.shape[1])
    encoded, slots = to_encode(request, chunks_BCL)
    memories, memory_valid = None, None
    if module.memory and encoded.shape[1]:
        valid = encoded != ids.pad
        rngs = None if key is None else {"noise": key}
        encode = functools.partial(module.apply, method="encode", rngs=rngs)
        if batch.memories is None:
            memories = encode(variables, encoded, valid)
        else:
            memories = _stored(batch.memories, request, jax.eval_shape(encode, variables, encoded, valid))
        memory_valid = valid.any(axis=-1)
    scored: Any = module.apply(
        variables,
        request.inputs,
        request.labels,
        memories,
        slots,
        request.chunk,
        request.task,
        memory_valid,
        request.inputs != ids.pad,
        method="score",
    )
    nats, correct = scored
    scores, start = {}, 0
    for name, part in requests.items():
        end = start + part.inputs.shape[1]
        scores[name] = Scores(nats[:, start:end], correct[:, start:end], part.weight, part.labels)
        start = end
    return scores


def _stored(memories_BCKE: jax.Array, request: Request, wanted: jax.ShapeDtypeStruct) -> jax.Array:
    """The stored memories that take the place of what the encoder would give, whose shape and dtype are `wanted`.

    Raises:
      ValueError: they are of another shape, or chunks that are not the row's own are to be encoded.
    """
    if request.extra is not None:
        raise ValueError("copies in their published form are encoded as they stand in the row: stored memories are not of them")
    memories = memories_BCKE[:, : wanted.shape[1]]
    if memories.shape != wanted.shape:
        raise ValueError(f"stored memories are of shape {memories_BCKE.shape}; the encoder gives {wanted.shape}")
    return jnp.asarray(memories, wanted.dtype)


def weights(module: MemoryModel, batch: Batch, names: Sequence[str], ids: SpecialIds, stage: Stage) -> dict[str, jax.Array]:
    """The weight of every position, without running the model."""
    requests = _requests(chunked(batch.tokens, module.config.chunk_length), names, ids, stage)
    return {name: request.weight for name, request in requests.items()}


def _requests(chunks_BCL: jax.Array, names: Sequence[str], ids: SpecialIds, stage: Stage) -> dict[str, Request]:
    return {name: make_request(name, chunks_BCL, ids, stage.compat) for name in names}
