"""Objectives of an autoencoder: every token of a chunk from the chunk's memory.

Shapes: B row, N token of a row, C chunk, L token of a chunk.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from memjax.config import Stage
from memjax.models import Autoencoder
from memjax.objectives.requests import SpecialIds
from memjax.objectives.terms import Batch, Scores, chunked


def score(
    module: Autoencoder,
    variables: Mapping[str, Any],
    batch: Batch,
    names: Sequence[str],
    ids: SpecialIds,
    stage: Stage,
    key: jax.Array | None,
) -> dict[str, Scores]:
    """Nats of each token given its chunk's memory; one call of the module for each name."""
    scores = {}
    for name in names:
        tokens = batch.tokens if name == "reconstruction" else random_tokens(batch.tokens, module.vocabulary, ids, key)
        chunks_BCL = chunked(tokens, module.config.chunk_length)
        flat = chunks_BCL.reshape(-1, chunks_BCL.shape[-1])
        rngs = None if key is None else {"noise": key}
        scored: Any = module.apply(variables, flat, flat != ids.pad, method="score", rngs=rngs)
        nats, correct = (x.reshape(chunks_BCL.shape) for x in scored)
        scores[name] = Scores(nats, correct, (chunks_BCL != ids.pad).astype(jnp.float32), chunks_BCL)
    return scores


def weights(module: Autoencoder, batch: Batch, names: Sequence[str], ids: SpecialIds, stage: Stage) -> dict[str, jax.Array]:
    """The weight of every position, without running the model."""
    weight = (chunked(batch.tokens, module.config.chunk_length) != ids.pad).astype(jnp.float32)
    return dict.fromkeys(names, weight)


def random_tokens(tokens_BN: jax.Array, vocabulary: int, ids: SpecialIds, key: jax.Array | None) -> jax.Array:
    """Uniform ids of content in place of text, padding kept. They are the labels too: whether a code is trivial shows in its loss on them."""
    key = jax.random.key(0) if key is None else key
    drawn = jax.random.randint(key, tokens_BN.shape, ids.first_content, ids.end_content(vocabulary), tokens_BN.dtype)
    return jnp.where(tokens_BN == ids.pad, tokens_BN, drawn)
