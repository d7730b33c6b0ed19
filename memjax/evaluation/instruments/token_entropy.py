"""Conditional entropy of each token given the tokens before it, estimated by one oracle.

This is entropy by shifting (Badger 2026, entropy). A text cut off after token t costs the bits of
its memory and S(t) nats given that memory. The bits do not depend on t, so that the memory term
cancels in S(t) - S(t - 1), an estimate of the conditional entropy of token t. It depends on the
oracle's quality on short texts, which are at the end of its window, after padding. A mixer that was
trained on full texts only has untrained weights for padding; attention masks it.

Shapes: N text, B text of a batch, T token of a text.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from memjax.errors import MemjaxError
from memjax.inference.codec import MemoryCodec, Params, scores_of
from memjax.inference.texts import check_texts, over_batches
from memjax.models import can, find


class EntropyError(MemjaxError):
    """The model has no entropies of tokens; the message names the family that has."""


def token_entropy(
    system: MemoryCodec,
    params: Params,
    texts: Int[np.ndarray, "N T"],
    batch: int,
) -> Float[np.ndarray, "N T"]:
    """Return the nats of each token given those before it, in float64; 0 at padding.

    They are estimates, so that some are below 0. The model runs T times, once per length of text;
    the differences are computed on the host.

    Args:
      system: an oracle.
      params: its parameters.
      texts: texts of T = `system.length` tokens each; shorter ones have padding on the left.
      batch: texts per batch.

    Raises:
      EntropyError: the model is not an oracle.
      TextsError: there are no texts, or they have another length.
    """
    require_oracle(system)
    check_texts(system, texts)

    def of_batch(tokens: np.ndarray) -> np.ndarray:
        # Summed in float64: differences of float32 sums would be noise.
        nats = np.asarray(_nats_of_prefixes(system, params, tokens))
        return nats.sum(axis=-1, dtype=np.float64).T

    sums = over_batches(of_batch, texts, batch, "token entropy")
    # Before the first token the sum is 0.
    return np.where(texts != system.ids.pad, np.diff(sums, axis=1, prepend=0.0), 0.0)


def require_oracle(system: MemoryCodec) -> None:
    """Raise EntropyError unless the system is an oracle."""
    if not can(system.module, "reads_own_memory"):
        raise EntropyError(
            f"family {find(system.module).name}, expected oracle for the entropy of tokens, since"
            " its decoder reads the tokens before"
        )


@functools.partial(jax.jit, static_argnums=0)
def _nats_of_prefixes(
    system: MemoryCodec, params: Params, tokens: Int[Array, "B T"]
) -> Float[Array, "T B T"]:
    """Return nats of every token of the texts up to their first, second, ... token."""
    place = jnp.arange(tokens.shape[1])

    def of_prefix(cut: jax.Array) -> jax.Array:
        scores = scores_of(
            system, params, jnp.where(place >= cut, jnp.roll(tokens, cut, axis=1), system.ids.pad)
        )
        # Without a start token, padding may predict the first token, unlike in a full text.
        return (scores.nats * scores.weight)[:, 0] * (place >= cut)

    return jax.lax.map(of_prefix, place[::-1])
