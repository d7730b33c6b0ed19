"""Next tokens of models that read a row, or an oracle's block, from its start.

A row is shown a start token and then its tokens but the last, so that every token is a target, the first one too.

Shapes: B row, N token of a row, X block of a row, L token of a block.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from memjax.config import WEIGHTINGS, Stage
from memjax.models import CausalLM
from memjax.objectives import entropy
from memjax.objectives.requests import SpecialIds, shift_right
from memjax.objectives.terms import Batch, Scores

CORRUPTED = {"corrupted_copy": True, "unweighted_corrupted_copy": False}
"""Copies of text of which half is noise, and whether only what exceeds the noise is trained on."""


def score(
    module: CausalLM,
    variables: Mapping[str, Any],
    batch: Batch,
    names: Sequence[str],
    ids: SpecialIds,
    stage: Stage,
    key: jax.Array | None,
) -> dict[str, Scores]:
    """Nats of every token of a row given those before it; weighted ones share one call of the module."""
    scores = {}
    for name, weighted in CORRUPTED.items():
        if name in names:
            scores[name] = entropy.corrupted_copy(module, variables, batch, ids, key, weighted)
    if set(names) - set(CORRUPTED):
        plain = next_token(module, variables, batch.tokens, ids)
        for name in names:
            if name in WEIGHTINGS:
                scores[name] = entropy.weighted(name, plain, batch.attribution, training=key is not None)
            elif name == "next_token":
                scores[name] = plain
    return scores


def next_token(module: CausalLM, variables: Mapping[str, Any], tokens_BN: jax.Array, ids: SpecialIds) -> Scores:
    """Scores [B, 1, N] of every token of the row."""
    labels_BXL = tokens_BN[:, None]
    inputs = shift_right(labels_BXL, ids.bos)[:, 0]
    scored: Any = module.apply(variables, inputs, tokens_BN, inputs != ids.pad, method="score")
    nats, correct = (x[:, None] for x in scored)
    return Scores(nats, correct, (labels_BXL != ids.pad).astype(jnp.float32), labels_BXL)


def weights(module: CausalLM, batch: Batch, names: Sequence[str], ids: SpecialIds, stage: Stage) -> dict[str, jax.Array]:
    """The weight of every position, without running the model."""
    weight_BXL = (batch.tokens[:, None] != ids.pad).astype(jnp.float32)
    return {name: entropy.corrupted_weight(batch.tokens, ids) if name in CORRUPTED else weight_BXL for name in names}
