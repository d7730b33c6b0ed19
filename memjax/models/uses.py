"""Where a training step applies the parts of a model; training/flops.py turns it into FLOPs."""

from collections.abc import Iterator
from typing import NamedTuple

from memjax.config import Backbone, Config
from memjax.models.encoder import Encoder

SIMILARITIES = "similarities"
"""The path of products between vectors, which have no parameters."""


class Use(NamedTuple):
    """A part of the parameters and what it is applied to."""

    path: str
    part: str
    positions: float
    """Over the whole batch."""
    length: int = 0
    """Positions of a stack."""
    stack: Backbone | None = None
    at: str = ""
    """The path whose place in the order of computation is this one's; empty is `path`."""
    pairs: float = 0.0
    """Pairs of positions of which one reads the other, over the whole batch; 0 is all pairs of a
    sequence, or half of them in a causal stack."""
    queries: float = 0.0
    """Positions whose queries are computed, over the whole batch; 0 is all of them."""


def encoder_uses(config: Config, chunks: float) -> Iterator[Use]:
    """Yield the uses of an encoder over so many chunks of a sequence."""
    model = config.model
    length = Encoder(model, config.data.vocab_size).length
    yield Use("encoder/backbone/blocks", "encoder", chunks * length, length, model.encoder)
    yield Use("encoder/down", "bridge", chunks * model.memory_vectors)
    yield Use("encoder/up", "bridge", chunks * model.memory_vectors)


def decoder_uses(
    stack: Backbone,
    sequences: float,
    length: int,
    scored: int,
    head: str = "head",
    positions: float = 0.0,
    pairs: float = 0.0,
    queries: float = 0.0,
) -> Iterator[Use]:
    """A stack over `length` positions per sequence, and a head on `scored` of them.

    `positions`, `pairs` and `queries` are those of a stack whose sequences share positions.
    """
    positions = positions or sequences * length
    yield Use("backbone/blocks", "decoder", positions, length, stack, "", pairs, queries)
    tied = head == "head" and stack.tie_embeddings
    yield Use("embed" if tied else head, "head", sequences * scored, at=head)
