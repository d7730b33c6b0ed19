"""Estimates of an attribution of every token, by mean squared error (Badger 2026, entropy estimation).

What these objectives call nats is a squared error, in the square of the attribution's unit, and nothing is ever `correct`.

Shapes: B row, N token of a row, X = 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from memjax.config import Stage
from memjax.models import EntropyRegressor
from memjax.objectives.entropy import known_attribution
from memjax.objectives.requests import SpecialIds, shift_right
from memjax.objectives.terms import Batch, Scores


def score(
    module: EntropyRegressor,
    variables: Mapping[str, Any],
    batch: Batch,
    names: Sequence[str],
    ids: SpecialIds,
    stage: Stage,
    key: jax.Array | None,
) -> dict[str, Scores]:
    """Squared errors [B, 1, N], that of token n at place n; one call of the module for each name.

    `entropy_regression` estimates a token's attribution after reading it, `shifted_entropy_regression` before: it is shown bos and
    then the row but for its last token, so that the first token has an estimate too.

    Raises:
      ValueError: there is no attribution to estimate, in training or in evaluation.
    """
    weight = _weight(batch.tokens, ids)
    scores = {}
    for name in names:
        attribution_BXN = known_attribution(name, batch.attribution, weight)
        inputs = batch.tokens
        if name == "shifted_entropy_regression":
            inputs = shift_right(inputs[:, None], ids.bos, ids.pad)[:, 0]
        estimate_BN: Any = module.apply(variables, inputs, inputs != ids.pad)
        error_BXN = jnp.square(estimate_BN[:, None] - attribution_BXN)
        scores[name] = Scores(error_BXN, jnp.zeros(error_BXN.shape, bool), weight)
    return scores


def weights(
    module: EntropyRegressor, batch: Batch, names: Sequence[str], ids: SpecialIds, stage: Stage
) -> dict[str, jax.Array]:
    """The weight of every position, without running the model."""
    return dict.fromkeys(names, _weight(batch.tokens, ids))


def _weight(tokens_BN: jax.Array, ids: SpecialIds) -> jax.Array:
    return (tokens_BN[:, None] != ids.pad).astype(jnp.float32)
