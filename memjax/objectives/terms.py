"""Sums that objectives return, so that means are exact over devices, hosts and microbatches.

Shapes: B row, N token of a row, C chunk of the row, X chunk to decode, L token, K vector of a
memory, E its width. A family whose models do not read chunks has X = 1; one that scores whole
chunks has L = 1.
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
    """-log probability of the label; in training with the objective's weighting, in a regression
    the squared error."""
    is_argmax: Bool[Array, "B X L"]
    """True where the label was the most likely token."""
    weight: Float[Array, "B X L"]
    """1 where the label counts, 0 where it is padding."""
    labels: Int[Array, "B X L"] | None = None
    """The scored tokens; None where an objective scores no tokens."""


@flax.struct.dataclass
class MetricSum:
    """Sums of one objective: nats / count is its mean loss, correct / count its accuracy."""

    nats: Float[Array, ""]
    count: Float[Array, ""]
    correct: Float[Array, ""]


MetricSums = Mapping[str, MetricSum]


def total(scores: Scores) -> MetricSum:
    """Return the sums over all tokens that count."""
    return MetricSum(
        nats=jnp.sum(scores.nats * scores.weight),
        count=jnp.sum(scores.weight),
        correct=jnp.sum(scores.is_argmax * scores.weight),
    )


def weighted_loss(
    terms: MetricSums, weights: Mapping[str, float], counts: Mapping[str, jax.Array] | None = None
) -> jax.Array:
    """Return the sum over objectives of weight * nats / count.

    Args:
      terms: sums of each objective.
      weights: weight of each objective.
      counts: replace the counts of `terms`: those of the whole batch, if `terms` are of one
        microbatch.
    """
    counts = counts or {name: term.count for name, term in terms.items()}
    return sum(
        (
            weight * terms[name].nats / jnp.maximum(counts[name], 1.0)
            for name, weight in weights.items()
        ),
        jnp.float32(0.0),
    )
