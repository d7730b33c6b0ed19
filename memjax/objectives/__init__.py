"""Objectives: pure functions from a model and rows of tokens to Terms.

A family of models has a file here with two functions: `score`, every named objective token by token, and `weights`, how much each of
those tokens counts, without running the model.

Shapes: B row, N token of a row, X chunk to decode, L token.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from memjax.config import OBJECTIVES, Stage
from memjax.models import FAMILIES
from memjax.objectives import language, memory, oracle, reconstruction, recurrent, regression, retrieval
from memjax.objectives.requests import REQUESTS, Request, SpecialIds, join
from memjax.objectives.terms import Batch, Scores, Term, Terms, total, weighted_loss

Variables = Mapping[str, Any]

SCORERS: Mapping[str, ModuleType] = {
    "autoencoder": reconstruction,
    "memory_model": memory,
    "causal_lm": language,
    "oracle": oracle,
    "recurrent_memory": recurrent,
    "retriever": retrieval,
    "ranker": retrieval,
    "entropy_regressor": regression,
}
_DEFAULT = Stage()


def score(
    module: nn.Module,
    variables: Variables,
    batch: Batch | Int[Array, "B N"],
    names: Sequence[str],
    ids: SpecialIds,
    stage: Stage = _DEFAULT,
    key: jax.Array | None = None,
) -> dict[str, Scores]:
    """Every named objective, token by token; those of one memory model share one encoder call and one decoder call.

    Args:
      module: a model of `memjax.models`.
      variables: its variables.
      batch: rows of tokens, alone or with what objectives read beside them.
      names: objectives of the model's family (`config.OBJECTIVES`).
      ids: reserved ids.
      stage: where `temperature`, `query_tokens` and `compat` come from.
      key: in training, what noise and random queries are drawn from; without it (evaluation) there is no noise, and queries come
        from a fixed key.

    Raises:
      ValueError: the module has no such objective.
    """
    return _scorer(module, names).score(module, variables, as_batch(batch), names, ids, stage, key)


def weights(
    module: nn.Module, batch: Batch | Int[Array, "B N"], names: Sequence[str], ids: SpecialIds, stage: Stage = _DEFAULT
) -> dict[str, jax.Array]:
    """How much each position that `score` returns counts, [B, X, L] for each objective; the model is not run."""
    return _scorer(module, names).weights(module, as_batch(batch), names, ids, stage)


def counts(
    module: nn.Module, batch: Batch | Int[Array, "B N"], names: Sequence[str], ids: SpecialIds, stage: Stage = _DEFAULT
) -> dict[str, jax.Array]:
    """How many tokens each objective scores, without running the model."""
    return {name: jnp.sum(weight) for name, weight in weights(module, batch, names, ids, stage).items()}


def chunk_means(scores: Scores, count_X: jax.Array, chunks: int) -> Scores:
    """`scores` weighed so that their sum over the whole batch's count is (1 / chunks) * sum over chunks of the chunk's own mean.

    Args:
      scores: of one microbatch.
      count_X: what counts in each chunk of the whole batch.
      chunks: C. The published code divides by it even where chunks have no target, which halves the weight of copying.
    """
    factor_X = jnp.where(count_X > 0, jnp.sum(count_X) / (chunks * jnp.maximum(count_X, 1.0)), 0.0)
    return dataclasses.replace(scores, weight=scores.weight * factor_X[:, None])


def as_batch(batch: Batch | jax.Array) -> Batch:
    """Rows of tokens alone as a batch."""
    return batch if isinstance(batch, Batch) else Batch(batch)


def _scorer(module: nn.Module, names: Sequence[str]) -> ModuleType:
    family = next((family for family, kind in FAMILIES.items() if isinstance(module, kind)), None)
    if family is None:
        raise ValueError(f"no objective is defined for {type(module).__name__}; the families are {', '.join(FAMILIES)}")
    for name in names:
        if name not in OBJECTIVES[family]:
            raise ValueError(f"a model of family {family} has no objective {name!r}; it has {', '.join(OBJECTIVES[family])}")
    return SCORERS[family]


__all__ = [
    "REQUESTS",
    "SCORERS",
    "Batch",
    "Request",
    "Scores",
    "SpecialIds",
    "Term",
    "Terms",
    "as_batch",
    "chunk_means",
    "counts",
    "join",
    "score",
    "total",
    "weighted_loss",
    "weights",
]
