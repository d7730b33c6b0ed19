"""Copies of text of which half is noise, which nobody can learn to predict.

Source: Badger 2026, corrupted copy. `corrupted_copy` is trained on what exceeds the entropy of a
token alone, `unweighted_corrupted_copy`, its control, on everything. Both share one draw and one
call.

In evaluation the copy is corrupted too, always in the same way, and neither leaves a loss out.

Shapes: B row, H = N / 2 tokens of half a row, X = 1, V vocabulary.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from memjax.models.request import Asking, Request, SpecialIds
from memjax.objectives.copying import check_halves, first_half, rows_copied
from memjax.objectives.objective import Objective, plain_loss
from memjax.objectives.terms import Scores


def corrupt(
    text: Int[Array, "B H"], vocabulary: int, ids: SpecialIds, key: jax.Array
) -> tuple[Int[Array, "B H"], Int[Array, "B H"], Bool[Array, "B H"]]:
    """Return a corrupted copy of each text, as input and as target.

    In each row half of the tokens (rounded down), chosen per row, are replaced by random content
    ids: one in the input, another in the target, so that the input has no information about the
    target. Given all earlier tokens, such a target is uniform over all content ids. Padding is
    unchanged.

    Args:
      text: first halves of rows.
      vocabulary: V; `ids` define which of these are content.
      ids: reserved ids.
      key: PRNG key of positions and ids.

    Returns:
      The copy as input, the copy as target, and where it is random.
    """
    key_places, key_input, key_target = jax.random.split(key, 3)
    real_BH = text != ids.pad
    # Choose the tokens with the lowest half of random numbers.
    order_BH = jnp.where(real_BH, jax.random.uniform(key_places, text.shape), jnp.inf)
    rank_BH = jnp.argsort(jnp.argsort(order_BH, axis=1), axis=1)
    random_BH = rank_BH < jnp.sum(real_BH, axis=1, keepdims=True) // 2

    start = ids.first_content
    contents = ids.end_content(vocabulary) - start
    input_BH = jax.random.randint(key_input, text.shape, 0, contents, text.dtype)
    # A random offset from the input id, less than a full cycle: uniform too, and never the same id.
    target_BH = (
        input_BH + jax.random.randint(key_target, text.shape, 1, contents, text.dtype)
    ) % contents
    return (
        jnp.where(random_BH, start + input_BH, text),
        jnp.where(random_BH, start + target_BH, text),
        random_BH,
    )


def _drawn(
    asking: Asking, name: str = "corrupted_copy"
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    first = first_half(asking.batch.tokens, name)
    return first, *corrupt(first, asking.module.vocab_size, asking.ids, asking.draw_key)


def _request(name: str, asking: Asking) -> Request:
    """Ask for the first half again, half of it at random."""
    return rows_copied(asking, *_drawn(asking, name)[:3])


def _above_entropy(asking: Asking, request: Request, scores: Scores) -> Scores:
    """Count a token's loss as 0 unless it exceeds the token's entropy.

    That is ln V where the copy is random (a little more than that of content ids alone), 0
    elsewhere. The mean is over all targets. The published code has constants in place of ln V, 6.4
    and earlier 9.3, both wrong for its vocabulary of 8000 (8.99).
    """
    if asking.key is None:
        return scores
    random_BH, vocabulary = _drawn(asking)[3], asking.module.vocab_size
    entropy_BXH = jnp.where(random_BH, math.log(vocabulary), 0.0)[:, None]
    return dataclasses.replace(scores, nats=jnp.where(scores.nats > entropy_BXH, scores.nats, 0.0))


OBJECTIVES = tuple(
    Objective(
        name,
        needs="predicts_rows",
        request=functools.partial(_request, name),
        loss=loss,
        shares="corrupted_copy",
        check=check_halves,
    )
    for name, loss in (
        ("corrupted_copy", _above_entropy),
        ("unweighted_corrupted_copy", plain_loss),
    )
)
