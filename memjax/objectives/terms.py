"""What an objective returns: sums, so that means are exact over devices, hosts and microbatches.

Shapes: B row, X chunk to decode, L token.
"""

from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@flax.struct.dataclass
class Scores:
    """One objective, token by token."""

    nats: Float[Array, "B X L"]
    """-log probability of the label."""
    correct: Bool[Array, "B X L"]
    """Whether the label was the most likely token."""
    weight: Float[Array, "B X L"]
    """1 where the label counts, 0 where it is padding."""
    labels: Int[Array, "B X L"]


@flax.struct.dataclass
class Term:
    """One objective, summed: nats / count is its mean loss, correct / count its accuracy."""

    nats: Float[Array, ""]
    count: Float[Array, ""]
    correct: Float[Array, ""]

    def __add__(self, other: "Term") -> "Term":
        return Term(self.nats + other.nats, self.count + other.count, self.correct + other.correct)


Terms = Mapping[str, Term]


def total(scores: Scores) -> Term:
    """Sums over all tokens that count."""
    return Term(
        nats=jnp.sum(scores.nats * scores.weight),
        count=jnp.sum(scores.weight),
        correct=jnp.sum(scores.correct * scores.weight),
    )


def weighted_loss(terms: Terms, weights: Mapping[str, float], counts: Mapping[str, jax.Array] | None = None) -> jax.Array:
    """Sum over objectives of weight * nats / count.

    `counts` replaces the terms' own counts: those of the whole batch, when the terms are of one microbatch.
    """
    counts = counts or {name: term.count for name, term in terms.items()}
    return sum(
        (weight * terms[name].nats / jnp.maximum(counts[name], 1.0) for name, weight in weights.items()), jnp.float32(0.0)
    )
