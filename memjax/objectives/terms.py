"""What an objective returns: sums, so that means are exact over devices, hosts and microbatches.

Shapes: B row, N token of a row, C chunk of the row, X chunk to decode, L token, K vector of a memory, E its width. A family whose models
do not read chunks has X = 1; one that scores whole chunks has L = 1.
"""

from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@flax.struct.dataclass
class Batch:
    """What an update reads."""

    tokens: Int[Array, "B N"]
    attribution: Float[Array, "B N"] | None = None
    """Of every token, for objectives that weigh by it."""
    memories: Float[Array, "B C K E"] | None = None
    """Of every chunk, where they are read from disk: a memory model's encoder is then not run."""


@flax.struct.dataclass
class Scores:
    """One objective, token by token."""

    nats: Float[Array, "B X L"]
    """-log probability of the label; in training what a weighing objective makes of it, and of a regression its squared error."""
    correct: Bool[Array, "B X L"]
    """Whether the label was the most likely token."""
    weight: Float[Array, "B X L"]
    """1 where the label counts, 0 where it is padding."""
    labels: Int[Array, "B X L"] | None = None
    """The tokens that were scored; None where an objective scores no tokens."""


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


def chunked(tokens: Int[Array, "B N"], length: int) -> Int[Array, "B C L"]:
    """Rows cut into chunks.

    Raises:
      ValueError: rows are no whole number of chunks.
    """
    batch, row = tokens.shape
    if row % length:
        raise ValueError(f"chunk_length={length} does not divide rows of {row} tokens")
    return tokens.reshape(batch, row // length, length)
