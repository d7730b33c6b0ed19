"""Next-token losses that know how predictable a token is (Badger 2026, entropy-weighted training and corrupted copy).

What these objectives call nats is the loss that is trained on. In evaluation it is the plain cross entropy.

Shapes: B row, N token of a row, H = N // 2 tokens of half a row, X = 1, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.models import CausalLM
from memjax.objectives.requests import SpecialIds, shift_right
from memjax.objectives.terms import Batch, Scores

VARIANTS: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "complement_weighted": lambda nats, a: (1 - a) * nats,
    "ten_minus_weighted": lambda nats, a: (10 - a) * nats,
    "subtracted_weighted": lambda nats, a: nats - a,
    "distance_weighted": lambda nats, a: 2.5 * jnp.abs(nats - a),
    "below_six_weighted": lambda nats, a: jnp.where(a < 6, nats, 0.0),
}
"""Loss of a token from its nats and its attribution a, in the order of publication.

The first is for attributions scaled to [0, 1], the others for unscaled ones. The gradient of `subtracted_weighted` is that of the
plain loss.
"""


def weighted(name: str, plain: Scores, attribution: Float[Array, "B N"] | None, training: bool = True) -> Scores:
    """Next-token scores [B, 1, N] whose nats are weighed by the attribution of the token that is predicted.

    The mean is over targets, so that weights near 0 make a loss small and not the step large.

    Args:
      name: one of `config.WEIGHTINGS`.
      plain: what `next_token` scores.
      attribution: of the prediction of token n at place n; it is not read at padding.
      training: False returns `plain`: models trained by different weights are compared by one loss, and held-out rows have no
        attributions.

    Raises:
      ValueError: there is no attribution to train with.
    """
    if not training:
        return plain
    a_BXN = known_attribution(name, attribution, plain.weight)
    return dataclasses.replace(plain, nats=VARIANTS[name](plain.nats, a_BXN))


def known_attribution(
    name: str, attribution: Float[Array, "B N"] | None, weight: Float[Array, "B 1 N"]
) -> Float[Array, "B 1 N"]:
    """The attribution of every token that counts, 0 elsewhere, so that whatever stands at padding cannot enter a sum.

    Raises:
      ValueError: there is none; `name` is the objective that needs it.
    """
    if attribution is None:
        raise ValueError(f"objective {name!r} needs an attribution of every token; config.data.attributions names their file")
    return jnp.where(weight > 0, attribution[:, None].astype(jnp.float32), 0.0)


def corrupted_copy(
    module: CausalLM,
    variables: Mapping[str, Any],
    batch: Batch,
    ids: SpecialIds,
    key: jax.Array | None,
    weighted: bool = True,
) -> Scores:
    """Scores [B, 1, N] of the first half of each row said again, half of it at random, which nobody can learn to say.

    In training a token's loss counts as 0 unless it exceeds the token's entropy: ln V where the copy is random (a little more than
    that of ids of content alone), 0 elsewhere. The mean is over all targets. The published code has constants in place of ln V,
    6.4 and earlier 9.3, both wrong for its vocabulary of 8000 (8.99).

    In evaluation the copy is corrupted too, always in the same way, and no loss is left out: what a model says of random tokens is
    part of what is asked.

    Args:
      module: a causal language model.
      variables: its variables.
      batch: rows of tokens; the second half of each is not used.
      ids: reserved ids.
      key: what corruption is drawn from in training; None in evaluation.
      weighted: False leaves no loss out in training either: the control.
    """
    draw = jax.random.key(0) if key is None else key
    inputs, labels, corrupted = corrupt(batch.tokens, module.vocabulary, ids, draw)
    scored: Any = module.apply(variables, inputs, labels, inputs != ids.pad, method="score")
    nats, correct = scored
    if weighted and key is not None:
        entropy_BN = jnp.where(corrupted, math.log(module.vocabulary), 0.0)
        nats = jnp.where(nats > entropy_BN, nats, 0.0)
    return Scores(nats[:, None], correct[:, None], corrupted_weight(batch.tokens, ids), labels[:, None])


def corrupted_weight(tokens: Int[Array, "B N"], ids: SpecialIds) -> Float[Array, "B 1 N"]:
    """What counts in `corrupted_copy`: every token of the copy, random or not, and no padding.

    Raises:
      ValueError: rows have no two halves.
    """
    first_BH = _first_half(tokens)
    copied = jnp.concatenate([jnp.zeros(first_BH.shape, bool), first_BH != ids.pad], axis=1)
    return copied.astype(jnp.float32)[:, None]


def corrupt(
    tokens: Int[Array, "B N"], vocabulary: int, ids: SpecialIds, key: jax.Array
) -> tuple[Int[Array, "B N"], Int[Array, "B N"], Bool[Array, "B N"]]:
    """The first half of each row and a corrupted copy of it.

    In each row half of the copied tokens (rounded down), chosen for that row alone, are replaced: in the inputs by random ids of
    content, in the labels by others, so that what is shown of a random token is not what was asked. Given all that a position has
    read, such a label is uniform over all ids of content. Padding is copied as it is.

    Args:
      tokens: rows; only their first halves are read.
      vocabulary: V; ids of content are those above all reserved ones.
      ids: reserved ids.
      key: what places and ids are drawn from.

    Returns:
      Inputs, whose position t is followed by token t; labels; and where the copy is random.

    Raises:
      ValueError: rows have no two halves.
    """
    first_BH = _first_half(tokens)
    key_places, key_shown, key_asked = jax.random.split(key, 3)
    real_BH = first_BH != ids.pad
    # The lowest half of as many random numbers as there are tokens.
    order_BH = jnp.where(real_BH, jax.random.uniform(key_places, first_BH.shape), jnp.inf)
    rank_BH = jnp.argsort(jnp.argsort(order_BH, axis=1), axis=1)
    random_BH = rank_BH < jnp.sum(real_BH, axis=1, keepdims=True) // 2

    start = ids.first_content
    contents = vocabulary - start
    shown_BH = jax.random.randint(key_shown, first_BH.shape, 0, contents, first_BH.dtype)
    # A random step from what is shown, of less than a full turn: uniform as well, and never the same id.
    asked_BH = (shown_BH + jax.random.randint(key_asked, first_BH.shape, 1, contents, first_BH.dtype)) % contents
    row_BN = jnp.concatenate([first_BH, jnp.where(random_BH, start + shown_BH, first_BH)], axis=1)
    labels_BN = jnp.concatenate([first_BH, jnp.where(random_BH, start + asked_BH, first_BH)], axis=1)
    inputs_BN = shift_right(row_BN[:, None], ids.bos)[:, 0]
    return inputs_BN, labels_BN, jnp.concatenate([jnp.zeros(first_BH.shape, bool), random_BH], axis=1)


def _first_half(tokens_BN: jax.Array) -> jax.Array:
    length = tokens_BN.shape[1]
    if length % 2:
        raise ValueError(f"config.data.row_tokens={length} must be even for corrupted_copy, which says half a row again")
    return jnp.asarray(tokens_BN)[:, : length // 2]
