"""Objectives: pure functions from a model and batches of tokens to MetricSums.

An objective builds its request once per step (`build_requests`); counts and scores follow from the
requests. `registry.py` has one line per file of objectives.

Shapes: B sequence, N token of a sequence, X decoded chunk, L token.
"""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from memjax.config import ConfigError, Stage
from memjax.models import Request, find
from memjax.models.request import Asking, Batch, Requests, SpecialIds, Variables
from memjax.objectives.checks import check, is_measured, load_config, of_family, weighed
from memjax.objectives.objective import Objective
from memjax.objectives.registry import OBJECTIVES
from memjax.objectives.requests import REQUESTS, make_request
from memjax.objectives.terms import MetricSum, MetricSums, Scores, total, weighted_loss

_DEFAULT = Stage()


def build_requests(
    module: nn.Module,
    batch: Batch | Int[Array, "B N"],
    names: Sequence[str],
    ids: SpecialIds,
    stage: Stage = _DEFAULT,
    key: jax.Array | None = None,
) -> dict[str, Request]:
    """Build the requests of all named objectives; the model is not run.

    Args:
      module: a model of `memjax.models`.
      batch: sequences of tokens, alone or with what objectives read beside them.
      names: objectives that the model's family can be trained for.
      ids: reserved ids.
      stage: where `dials` and `compat` come from.
      key: in training the source of noise and random requests; None in evaluation, which has no
        noise and draws from a fixed key.

    Returns:
      Requests by the name of their objective; some objectives share one.

    Raises:
      ConfigError: the model's family has no such objective, or the batch does not fit it.
    """
    asking = Asking(module, as_batch(batch), ids, stage, key)
    requests: dict[str, Request] = {}
    for objective in _known(module, names):
        if objective.asks not in requests:
            requests[objective.asks] = objective.request(asking)
    return requests


def score(
    module: nn.Module,
    variables: Variables,
    batch: Batch | Int[Array, "B N"],
    names: Sequence[str],
    ids: SpecialIds,
    stage: Stage = _DEFAULT,
    key: jax.Array | None = None,
    requests: Requests | None = None,
) -> dict[str, Scores]:
    """Score every named objective, token by token.

    Args:
      module: a model of `memjax.models`.
      variables: its variables.
      batch: as in `build_requests`.
      names: objectives that the model's family can be trained for.
      ids: reserved ids.
      stage: as in `build_requests`.
      key: as in `build_requests`.
      requests: from `build_requests` of the same arguments; None builds them.

    Raises:
      ConfigError: as `build_requests`.
    """
    asking = Asking(module, as_batch(batch), ids, stage, key)
    if requests is None:
        requests = build_requests(module, batch, names, ids, stage, key)
    known, found = _known(module, names), {}
    for function in dict.fromkeys(objective.score for objective in known):
        asked = {o.asks: requests[o.asks] for o in known if o.score is function}
        found |= function(asking, variables, asked)
    return {o.name: o.loss(asking, requests[o.asks], found[o.asks]) for o in known}


def weights(requests: Requests, names: Sequence[str]) -> dict[str, jax.Array]:
    """Return how much each position that `score` returns counts, [B, X, L] per objective."""
    return {name: requests[OBJECTIVES[name].asks].weight for name in names}


def chunk_means(scores: Scores, count_X: jax.Array, chunks: int) -> Scores:
    """Weigh scores so that their mean is the mean over chunks of the chunks' own means.

    Args:
      scores: of one microbatch.
      count_X: what counts in each chunk of the whole batch.
      chunks: C. The published code divides by it even where chunks have no target, which halves the
        weight of copying.
    """
    factor_X = jnp.where(count_X > 0, jnp.sum(count_X) / (chunks * jnp.maximum(count_X, 1.0)), 0.0)
    return dataclasses.replace(scores, weight=scores.weight * factor_X[:, None])


def as_batch(batch: Batch | jax.Array) -> Batch:
    """Return a batch; sequences of tokens alone become one."""
    return batch if isinstance(batch, Batch) else Batch(batch)


def _known(module: nn.Module, names: Sequence[str]) -> list[Objective]:
    family = find(module).name
    known = of_family(family)
    for name in names:
        ConfigError.require(
            name in known,
            f"a model of family {family} has no objective {name!r}; it has {', '.join(known)}",
        )
    return [OBJECTIVES[name] for name in names]


__all__ = [
    "OBJECTIVES",
    "REQUESTS",
    "Asking",
    "Batch",
    "MetricSum",
    "MetricSums",
    "Objective",
    "Request",
    "Scores",
    "SpecialIds",
    "as_batch",
    "build_requests",
    "check",
    "chunk_means",
    "is_measured",
    "load_config",
    "make_request",
    "of_family",
    "score",
    "total",
    "weighed",
    "weighted_loss",
    "weights",
]
