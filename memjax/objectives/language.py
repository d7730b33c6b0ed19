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
from memjax.objectives.requests import SpecialIds, make_request, shift_right
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
    if "plain_copy" in names:
        scores["plain_copy"] = plain_copy(module, variables, batch.tokens, ids)
    if set(names) - {"plain_copy", *CORRUPTED}:
        plain = next_token(module, variables, batch.tokens, ids, stage)
        for name in names:
            if name in WEIGHTINGS:
                scores[name] = entropy.weighted(name, plain, _attribution(batch, stage), training=key is not None)
            elif name == "next_token":
                scores[name] = plain
    return scores


def plain_copy(module: CausalLM, variables: Mapping[str, Any], tokens_BN: jax.Array, ids: SpecialIds) -> Scores:
    """Scores [B, 1, N] of a row whose second half is its first half again; the second half counts."""
    first_BH = tokens_BN[:, : tokens_BN.shape[1] // 2]
    labels = jnp.concatenate([first_BH, first_BH], axis=1)
    inputs = shift_right(labels[:, None], ids.bos)[:, 0]
    scored: Any = module.apply(variables, inputs, labels, inputs != ids.pad, method="score")
    nats, correct = (x[:, None] for x in scored)
    return Scores(nats, correct, entropy.corrupted_weight(tokens_BN, ids), labels[:, None])


def _attribution(batch: Batch, stage: Stage) -> jax.Array | None:
    """Attributions [B, N] at the places where their tokens are the labels."""
    if batch.attribution is None or "unscored_first_tokens" not in stage.compat:
        return batch.attribution
    return jnp.pad(batch.attribution[:, 1:], ((0, 0), (0, 1)))


def next_token(module: CausalLM, variables: Mapping[str, Any], tokens_BN: jax.Array, ids: SpecialIds, stage: Stage) -> Scores:
    """Scores [B, 1, N] of every token of the row."""
    request = make_request("next_token", tokens_BN[:, None], ids, stage.compat)
    inputs, labels = request.inputs[:, 0], request.labels[:, 0]
    scored: Any = module.apply(variables, inputs, labels, inputs != ids.pad, method="score")
    nats, correct = (x[:, None] for x in scored)
    return Scores(nats, correct, request.weight, request.labels)


def weights(module: CausalLM, batch: Batch, names: Sequence[str], ids: SpecialIds, stage: Stage) -> dict[str, jax.Array]:
    """The weight of every position, without running the model."""
    weight_BXL = make_request("next_token", batch.tokens[:, None], ids, stage.compat).weight
    copied = {"plain_copy", *CORRUPTED}
    return {name: entropy.corrupted_weight(batch.tokens, ids) if name in copied else weight_BXL for name in names}
