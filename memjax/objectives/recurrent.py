"""Next tokens of recurrent memory, chunk by chunk; no token is inserted.

Shapes: B row, N token of a row, C chunk, L token of a chunk.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from memjax.config import Stage
from memjax.models import RecurrentMemory
from memjax.objectives.requests import SpecialIds
from memjax.objectives.terms import Batch, Scores, chunked


def score(
    module: RecurrentMemory,
    variables: Mapping[str, Any],
    batch: Batch,
    names: Sequence[str],
    ids: SpecialIds,
    stage: Stage,
    key: jax.Array | None,
) -> dict[str, Scores]:
    """Nats [B, C, L] of every token given those before it in its chunk and the memory of earlier chunks."""
    chunks_BCL = chunked(batch.tokens, module.config.chunk_length)
    scored: Any = module.apply(variables, chunks_BCL, chunks_BCL != ids.pad, method="score")
    nats, correct = scored
    return dict.fromkeys(names, Scores(nats, correct, _weight(module, chunks_BCL, ids, stage), chunks_BCL))


def weights(module: RecurrentMemory, batch: Batch, names: Sequence[str], ids: SpecialIds, stage: Stage) -> dict[str, jax.Array]:
    """The weight of every position, without running the model."""
    return dict.fromkeys(names, _weight(module, chunked(batch.tokens, module.config.chunk_length), ids, stage))


def _weight(module: RecurrentMemory, chunks_BCL: jax.Array, ids: SpecialIds, stage: Stage) -> jax.Array:
    """1 for a token, 0 for padding and, as published, for a chunk's first token."""
    weight = (chunks_BCL != ids.pad).astype(jnp.float32)
    if module.overwrites or "unscored_first_tokens" in stage.compat:
        weight = weight.at[..., 0].set(0.0)
    return weight
