"""Estimates of an attribution of every token, by mean squared error.

Source: Badger 2026, entropy estimation.

What these objectives call nats is a squared error, in the square of the attribution's unit, and
`is_argmax` is always False.

Shapes: B sequence, N token of a sequence, X = 1.
"""

from typing import Any

import jax.numpy as jnp

from memjax.models.request import Asking, Request, Requests, Variables
from memjax.objectives.objective import Objective
from memjax.objectives.requests import shift_right, token_weight
from memjax.objectives.terms import Scores
from memjax.objectives.weighted import known_attribution


def _after(asking: Asking) -> Request:
    """Estimates after the token is read."""
    tokens = asking.batch.tokens[:, None]
    return Request(tokens, tokens, token_weight(tokens, asking.ids))


def _before(asking: Asking) -> Request:
    """Estimate before the token is read.

    Inputs are bos and the sequence but for its last token, so that the first token has an estimate.
    """
    tokens, ids = asking.batch.tokens[:, None], asking.ids
    return Request(shift_right(tokens, ids.bos, ids.pad), tokens, token_weight(tokens, ids))


def score(asking: Asking, variables: Variables, requests: Requests) -> dict[str, Scores]:
    """Squared errors [B, 1, N]; that of token n is at position n. One call per request.

    Raises:
      ValueError: there is no attribution to estimate.
    """
    scores = {}
    for name, request in requests.items():
        attribution_BXN = known_attribution(name, asking.batch.attribution, request.weight)
        inputs = request.inputs[:, 0]
        estimate_BN: Any = asking.module.apply(variables, inputs, inputs != asking.ids.pad)
        error_BXN = jnp.square(estimate_BN[:, None] - attribution_BXN)
        scores[name] = Scores(error_BXN, jnp.zeros(error_BXN.shape, bool), request.weight)
    return scores


OBJECTIVES = tuple(
    Objective(
        name,
        needs="estimates",
        request=request,
        score=score,
        held_out=None,
        reads_attribution=True,
    )
    for name, request in (
        ("entropy_regression", _after),
        ("shifted_entropy_regression", _before),
    )
)
