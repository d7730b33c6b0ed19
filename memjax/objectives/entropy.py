"""Next-token losses that know how predictable a token is (Badger 2026, entropy-weighted training and corrupted copy).

What these objectives call nats is the loss that is trained on. In evaluation (no key) it is the plain cross entropy.

Shapes: B row, N token of a row, H = N / 2 tokens of half a row, X = 1, V vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.objectives.requests import SpecialIds
from memjax.objectives.terms import Scores

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


def above_entropy(plain: Scores, corrupted: Bool[Array, "B H"], vocabulary: int) -> Scores:
    """Scores [B, 1, H] of a corrupted copy as `corrupted_copy` is trained on them.

    A token's loss counts as 0 unless it exceeds the token's entropy: ln V where the copy is random (a little more than that of ids
    of content alone), 0 elsewhere. The mean is over all targets. The published code has constants in place of ln V, 6.4 and earlier
    9.3, both wrong for its vocabulary of 8000 (8.99).

    Args:
      plain: of every token of the copy.
      corrupted: where the copy is random.
      vocabulary: V.
    """
    entropy_BXH = jnp.where(corrupted, math.log(vocabulary), 0.0)[:, None]
    return dataclasses.replace(plain, nats=jnp.where(plain.nats > entropy_BXH, plain.nats, 0.0))


def first_half(tokens: Int[Array, "B N"], name: str) -> Int[Array, "B H"]:
    """What a copy repeats.

    Raises:
      ValueError: rows have no two halves; `name` is the objective that was asked.
    """
    length = tokens.shape[1]
    if length % 2:
        raise ValueError(f"config.data.row_tokens={length} must be even for {name}, which says half a row again")
    return jnp.asarray(tokens)[:, : length // 2]


def corrupt(
    text: Int[Array, "B H"], vocabulary: int, ids: SpecialIds, key: jax.Array
) -> tuple[Int[Array, "B H"], Int[Array, "B H"], Bool[Array, "B H"]]:
    """A corrupted copy of each text.

    In each row half of the tokens (rounded down), chosen for that row alone, are replaced: where they are shown by random ids of
    content, where they are asked by others, so that what is shown of a random token is not what was asked. Given all that stands
    before it, what is asked at such a place is uniform over all ids of content. Padding is copied as it is.

    Args:
      text: first halves of rows.
      vocabulary: V; `ids` say which of these stand for text.
      ids: reserved ids.
      key: what places and ids are drawn from.

    Returns:
      The copy as it is shown, as it is asked, and where it is random.
    """
    key_places, key_shown, key_asked = jax.random.split(key, 3)
    real_BH = text != ids.pad
    # The lowest half of as many random numbers as there are tokens.
    order_BH = jnp.where(real_BH, jax.random.uniform(key_places, text.shape), jnp.inf)
    rank_BH = jnp.argsort(jnp.argsort(order_BH, axis=1), axis=1)
    random_BH = rank_BH < jnp.sum(real_BH, axis=1, keepdims=True) // 2

    start = ids.first_content
    contents = ids.end_content(vocabulary) - start
    shown_BH = jax.random.randint(key_shown, text.shape, 0, contents, text.dtype)
    # A random step from what is shown, of less than a full turn: uniform as well, and never the same id.
    asked_BH = (shown_BH + jax.random.randint(key_asked, text.shape, 1, contents, text.dtype)) % contents
    return jnp.where(random_BH, start + shown_BH, text), jnp.where(random_BH, start + asked_BH, text), random_BH
