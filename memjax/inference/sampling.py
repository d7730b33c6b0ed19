"""Sampling of the next token from its logits.

Shapes: B sequence, V vocabulary, J candidate tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from memjax.errors import MemjaxError


class GenerationError(MemjaxError):
    """A model cannot generate or score what was requested; the message gives the reason."""


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The distribution that the next token is drawn from.

    `temperature` divides the logits. Then `top_k` and `top_p` remove unlikely tokens, and the token
    is drawn from the others in proportion to their probabilities.

    Raises:
      GenerationError: a number is out of its range.
    """

    temperature: float = 0.0
    """Sampling temperature; 0 is greedy decoding, which picks the lowest id among equals."""
    top_k: int = 0
    """Number of most likely tokens to sample from; 0 is all."""
    top_p: float = 1.0
    """Nucleus sampling: the most likely tokens are kept until their probabilities reach this sum
    (Holtzman et al. 2020, arXiv 1904.09751)."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise GenerationError(
                f"temperature={self.temperature} must be a number from 0 (the most likely token) up"
            )
        if self.top_k < 0:
            raise GenerationError(f"top_k={self.top_k} must be 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise GenerationError(
                f"top_p={self.top_p} must be more than 0 and at most 1 (all tokens)"
            )


def draw(
    logits: Float[Array, "B V"],
    key: jax.Array,
    row: Int[Array, " B"],
    made: Int[Array, " B"],
    sampling: Sampling,
) -> Int[Array, " B"]:
    """Return the next token of each sequence.

    The random numbers depend on `key`, the number of the sequence and its number of generated
    tokens alone. A sequence therefore gets the same tokens in any batch.

    Args:
      logits: float32.
      key: the key of the whole generation.
      row: number of each sequence.
      made: generated tokens of each sequence so far.
      sampling: the distribution.
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    scaled, names = candidates(logits, sampling)
    keys = jax.vmap(lambda r, t: jax.random.fold_in(jax.random.fold_in(key, r), t))(row, made)
    chosen_B = jax.vmap(jax.random.categorical)(keys, scaled)
    return jnp.take_along_axis(names, chosen_B[:, None], axis=1)[:, 0].astype(jnp.int32)


def candidates(
    logits: Float[Array, "B V"], sampling: Sampling
) -> tuple[Float[Array, "B J"], Int[Array, "B J"]]:
    """Return the logits of the candidate tokens at a temperature above 0, -inf for removed ones,
    and their ids.
    """
    vocabulary = logits.shape[-1]
    scaled = logits.astype(jnp.float32) / sampling.temperature
    kept = min(sampling.top_k or vocabulary, vocabulary)
    if kept == vocabulary and sampling.top_p == 1:
        return scaled, jnp.broadcast_to(jnp.arange(vocabulary), scaled.shape)
    scaled, names = jax.lax.top_k(scaled, kept)
    if sampling.top_p < 1:
        probability = jax.nn.softmax(scaled, axis=-1)
        # No token precedes the most likely one, so it always stays.
        before = jnp.cumsum(probability, axis=-1) - probability
        scaled = jnp.where(before < sampling.top_p, scaled, -jnp.inf)
    return scaled, names
