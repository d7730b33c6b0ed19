"""Next tokens of models that read a row from its start.

A row is shown a start token and then its tokens but the last, so that every token is a target, the first one too. As published
(`unscored_first_tokens`) it is shown as it stands, and position t says token t + 1. A copy is a row whose second half is its first half
again; only the second half is scored, and all of its tokens are targets in either form.

Shapes: B row, N token of a row, H = N / 2 tokens of half a row, X = 1.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from memjax.config import WEIGHTINGS, Stage
from memjax.models import CausalLM
from memjax.objectives import entropy
from memjax.objectives.requests import Request, SpecialIds, make_request
from memjax.objectives.terms import Batch, Scores

CORRUPTED = {"corrupted_copy": True, "unweighted_corrupted_copy": False}
"""Copies of text of which half is noise, and whether only what exceeds the noise is trained on."""
COPIES = ("plain_copy", *CORRUPTED)


def score(
    module: CausalLM,
    variables: Mapping[str, Any],
    batch: Batch,
    names: Sequence[str],
    ids: SpecialIds,
    stage: Stage,
    key: jax.Array | None,
) -> dict[str, Scores]:
    """Nats of every token of the row, [B, 1, N], or of the copied half, [B, 1, H], given the tokens before.

    The module is called once for reading on, plain or weighted, once for `plain_copy` and once for both corrupted copies.

    `key` None is evaluation: objectives that weigh losses or leave some out are plain, and copies are always corrupted in the same way.
    """
    scores = {}
    if "plain_copy" in names:
        scores["plain_copy"] = plain_copy(module, variables, batch.tokens, ids, stage)
    scores |= corrupted_copies(module, variables, batch.tokens, [name for name in names if name in CORRUPTED], ids, stage, key)
    if set(names) - set(COPIES):
        plain = next_token(module, variables, batch.tokens, ids, stage)
        for name in names:
            if name in WEIGHTINGS:
                scores[name] = entropy.weighted(name, plain, _attribution(batch, stage), training=key is not None)
            elif name == "next_token":
                scores[name] = plain
    return scores


def weights(module: CausalLM, batch: Batch, names: Sequence[str], ids: SpecialIds, stage: Stage) -> dict[str, jax.Array]:
    """The weight of every position that is scored, without running the model."""
    found = {}
    for name in names:
        if name in COPIES:
            # Corruption puts text in place of text, so that it does not change what counts.
            first_BH = entropy.first_half(batch.tokens, name)
            found[name] = _copy_request(first_BH, first_BH, first_BH, ids, stage)[0].weight
        else:
            found[name] = make_request("next_token", batch.tokens[:, None], ids, stage.compat).weight
    return found


def next_token(module: CausalLM, variables: Mapping[str, Any], tokens_BN: jax.Array, ids: SpecialIds, stage: Stage) -> Scores:
    """Scores [B, 1, N] of every token of the row."""
    return _score(module, variables, ids, make_request("next_token", tokens_BN[:, None], ids, stage.compat))


def plain_copy(module: CausalLM, variables: Mapping[str, Any], tokens_BN: jax.Array, ids: SpecialIds, stage: Stage) -> Scores:
    """Scores [B, 1, H] of the first half of each row said again; the second half of the row is not used."""
    first_BH = entropy.first_half(tokens_BN, "plain_copy")
    return _score(module, variables, ids, *_copy_request(first_BH, first_BH, first_BH, ids, stage))


def corrupted_copies(
    module: CausalLM,
    variables: Mapping[str, Any],
    tokens_BN: jax.Array,
    names: Sequence[str],
    ids: SpecialIds,
    stage: Stage,
    key: jax.Array | None,
) -> dict[str, Scores]:
    """Scores [B, 1, H] of the first half of each row said again, half of it at random, which nobody can learn to say.

    `corrupted_copy` is trained on what exceeds the entropy of a token alone (`entropy.above_entropy`), `unweighted_corrupted_copy`,
    its control, on everything. Both are of the same draw and of one call of the module.

    `key` is what corruption is drawn from in training. None is evaluation: the copy is corrupted too, always in the same way, and
    neither objective leaves a loss out, since what a model says of random tokens is part of what is asked.
    """
    if not names:
        return {}
    first_BH = entropy.first_half(tokens_BN, names[0])
    draw = jax.random.key(0) if key is None else key
    shown_BH, asked_BH, corrupted_BH = entropy.corrupt(first_BH, module.vocabulary, ids, draw)
    plain = _score(module, variables, ids, *_copy_request(first_BH, shown_BH, asked_BH, ids, stage))
    kept = plain if key is None else entropy.above_entropy(plain, corrupted_BH, module.vocabulary)
    return {name: kept if CORRUPTED[name] else plain for name in names}


def _copy_request(
    first_BH: jax.Array, shown_BH: jax.Array, asked_BH: jax.Array, ids: SpecialIds, stage: Stage
) -> tuple[Request, int]:
    """A row that ends in a copy, with labels and weights of the copy alone, and the position that says its first token."""
    shown, asked = (
        make_request("next_token", jnp.concatenate([first_BH, copy_BH], axis=1)[:, None], ids, stage.compat)
        for copy_BH in (shown_BH, asked_BH)
    )
    half = first_BH.shape[1]
    start = half - _unshifted(stage)
    copied = slice(start, start + half)
    return dataclasses.replace(shown, labels=asked.labels[..., copied], weight=asked.weight[..., copied]), start


def _score(module: CausalLM, variables: Mapping[str, Any], ids: SpecialIds, request: Request, start: int = 0) -> Scores:
    """One call of the module; labels follow the inputs from position `start` on."""
    inputs, labels = request.inputs[:, 0], request.labels[:, 0]
    scored: Any = module.apply(variables, inputs, labels, inputs != ids.pad, start=start, method="score")
    nats, correct = (x[:, None] for x in scored)
    return Scores(nats, correct, request.weight, request.labels)


def _unshifted(stage: Stage) -> bool:
    """Whether rows are shown as they stand, so that token t is said by position t - 1."""
    return "unscored_first_tokens" in stage.compat


def _attribution(batch: Batch, stage: Stage) -> jax.Array | None:
    """Attributions [B, N] at the places where their tokens are the labels."""
    if batch.attribution is None or not _unshifted(stage):
        return batch.attribution
    return jnp.pad(batch.attribution[:, 1:], ((0, 0), (0, 1)))
