"""Objectives: pure functions from a model and rows of tokens to Terms.

Shapes: B row, N = C * L tokens of a row, C chunk, X chunk to decode, L token.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from memjax.models import Autoencoder, MemoryModel
from memjax.objectives.requests import REQUESTS, Request, SpecialIds, join, memories_needed
from memjax.objectives.terms import Scores, Term, Terms, total, weighted_loss

Variables = Mapping[str, Any]


def score(
    module: nn.Module, variables: Variables, tokens: Int[Array, "B N"], names: Sequence[str], ids: SpecialIds
) -> dict[str, Scores]:
    """Every named objective, token by token, with one encoder call and one decoder call for all of them.

    Args:
      module: an Autoencoder (objective `reconstruction`) or a MemoryModel (`next_token`, `copy`, `blank_copy`).
      variables: the module's variables.
      tokens: rows.
      names: objectives.
      ids: reserved ids.

    Raises:
      ValueError: the module has no such objective.
    """
    if isinstance(module, Autoencoder):
        _known(names, ("reconstruction",), "an autoencoder")
        chunks_BCL = _chunks(tokens, module.config.chunk_length)
        flat = chunks_BCL.reshape(-1, chunks_BCL.shape[-1])
        scored: Any = module.apply(variables, flat, flat != ids.pad, method="score")
        nats, correct = scored
        shape = chunks_BCL.shape
        weight = (chunks_BCL != ids.pad).astype(jnp.float32)
        return {"reconstruction": Scores(nats.reshape(shape), correct.reshape(shape), weight, chunks_BCL)}
    if not isinstance(module, MemoryModel):
        raise ValueError(f"no objective is defined for {type(module).__name__}")
    chunks_BCL = _chunks(tokens, module.config.chunk_length)
    requests = _requests(chunks_BCL, names, ids)
    request = join(list(requests.values()))
    memories, memory_valid = None, None
    needed = memories_needed(request)
    if module.memory and needed:
        valid = chunks_BCL[:, :needed] != ids.pad
        memories = module.apply(variables, chunks_BCL[:, :needed], valid, method="encode")
        memory_valid = valid.any(axis=-1)
    scored: Any = module.apply(
        variables,
        request.inputs,
        request.labels,
        memories,
        request.slots,
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


def counts(module: nn.Module, tokens: Int[Array, "B N"], names: Sequence[str], ids: SpecialIds) -> dict[str, jax.Array]:
    """How many tokens each objective scores in `tokens`, without running the model."""
    if isinstance(module, Autoencoder):
        _known(names, ("reconstruction",), "an autoencoder")
        return {name: jnp.sum(tokens != ids.pad).astype(jnp.float32) for name in names}
    requests = _requests(_chunks(tokens, module.config.chunk_length), names, ids)
    return {name: jnp.sum(request.weight) for name, request in requests.items()}


def _requests(chunks_BCL: jax.Array, names: Sequence[str], ids: SpecialIds) -> dict[str, Request]:
    _known(names, tuple(REQUESTS), "a memory model")
    return {name: REQUESTS[name](chunks_BCL, ids) for name in names}


def _known(names: Sequence[str], allowed: tuple[str, ...], owner: str) -> None:
    for name in names:
        if name not in allowed:
            raise ValueError(f"{owner} has no objective {name!r}; it has {', '.join(allowed)}")


def _chunks(tokens_BN: jax.Array, length: int) -> jax.Array:
    batch, row = tokens_BN.shape
    if row % length:
        raise ValueError(f"chunk_length={length} does not divide rows of {row} tokens")
    return tokens_BN.reshape(batch, row // length, length)


__all__ = [
    "REQUESTS",
    "Request",
    "Scores",
    "SpecialIds",
    "Term",
    "Terms",
    "counts",
    "score",
    "total",
    "weighted_loss",
]
