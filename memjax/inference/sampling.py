"""How the next token is chosen from its logits.

Shapes: B row, V vocabulary, J tokens that may be chosen.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from memjax.inference.errors import GenerationError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Which tokens may come, and how likely each is.

    First `temperature` divides the logits, then `top_k` and then `top_p` leave out what is unlikely, and what is left is drawn from in
    proportion.

    Raises:
      GenerationError: a number is out of its range.
    """

    temperature: float = 0.0
    """0 takes the most likely token (of equals the one with the lowest id), whatever the others are."""
    top_k: int = 0
    """How many of the most likely tokens may come; 0 is all."""
    top_p: float = 1.0
    """Tokens may come from the most likely one down until their probabilities reach this sum (Holtzman et al. 2020, arXiv 1904.09751)."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise GenerationError(f"temperature={self.temperature} must be a number from 0 (the most likely token) up")
        if self.top_k < 0:
            raise GenerationError(f"top_k={self.top_k} must be 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise GenerationError(f"top_p={self.top_p} must be more than 0 and at most 1 (all tokens)")


def draw(
    logits: Float[Array, "B V"], key: jax.Array, row: Int[Array, " B"], made: Int[Array, " B"], sampling: Sampling
) -> Int[Array, " B"]:
    """The next token of each row.

    Chance comes from `key`, the row's number and how many tokens the row has made, and from nothing else: a row gets the same tokens
    among others as alone.

    Args:
      logits: float32.
      key: of the whole generation.
      row: number of each row.
      made: tokens made so far in each row.
      sampling: how to choose.
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    scaled, names = candidates(logits, sampling)
    keys = jax.vmap(lambda r, t: jax.random.fold_in(jax.random.fold_in(key, r), t))(row, made)
    chosen_B = jax.vmap(jax.random.categorical)(keys, scaled)
    return jnp.take_along_axis(names, chosen_B[:, None], axis=1)[:, 0].astype(jnp.int32)


def candidates(logits: Float[Array, "B V"], sampling: Sampling) -> tuple[Float[Array, "B J"], Int[Array, "B J"]]:
    """Logits of the tokens that may come at a temperature above 0, -inf for none, and which tokens they are."""
    vocabulary = logits.shape[-1]
    scaled = logits.astype(jnp.float32) / sampling.temperature
    kept = min(sampling.top_k or vocabulary, vocabulary)
    if kept == vocabulary and sampling.top_p == 1:
        return scaled, jnp.broadcast_to(jnp.arange(vocabulary), scaled.shape)
    scaled, names = jax.lax.top_k(scaled, kept)
    if sampling.top_p < 1:
        probability = jax.nn.softmax(scaled, axis=-1)
        # The most likely token has nothing before it and always stays.
        before = jnp.cumsum(probability, axis=-1) - probability
        scaled = jnp.where(before < sampling.top_p, scaled, -jnp.inf)
    return scaled, names
