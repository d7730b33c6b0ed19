"""Retriever: passages are found by the direction of their memories (Badger 2026, retrieval).

Shapes: B passage, L token, K vector, E encoder width.
"""

import dataclasses
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Config, Model, Stage
from memjax.config.checks import check_range
from memjax.models.adapter import ENCODER_READS, Adapter
from memjax.models.encoder import Encoder
from memjax.models.request import Requests
from memjax.models.uses import SIMILARITIES, Use, encoder_uses

_SMALLEST_SQUARE = 1e-12


@dataclasses.dataclass(frozen=True)
class QueryDials:
    """Settings of the families that answer queries."""

    query_tokens: int = 7
    """Tokens of a passage that form its query in n-gram and n-bag retrieval."""


@dataclasses.dataclass(frozen=True)
class RetrieverDials(QueryDials):
    """Settings of a retriever alone."""

    temperature: float = 0.02
    """Divisor of cosine similarities."""


def unit(x: Float[Array, "*any E"]) -> Float[Array, "*any E"]:
    """Divide `x` by its norm, in float32.

    A vector shorter than 1e-6 stays as it is: its gradient is finite, at zero too.
    """
    x = x.astype(jnp.float32)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.where(square > _SMALLEST_SQUARE, square, 1.0))


class Retriever(nn.Module):
    """An encoder whose memories are compared by cosine similarity."""

    config: Model
    vocab_size: int

    def setup(self) -> None:
        self.encoder = Encoder(self.config, self.vocab_size)

    def embed(
        self, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"] | None = None
    ) -> Float[Array, "B KE"]:
        """Unit vectors in float32: a chunk's K memory vectors side by side, normalised together.

        Args:
          tokens: ids.
          valid: False where a position is padding; None when there is none.
        """
        memory = self.encoder(tokens, valid)
        return unit(memory.reshape(memory.shape[0], -1))

    def __call__(
        self, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"] | None = None
    ) -> jax.Array:
        """Return the result of `embed`."""
        return self.embed(tokens, valid)


def _uses(config: Config, stage: Stage, requests: Requests) -> Iterator[Use]:
    passages = stage.batch_size * config.chunks
    drawn = sum(request.extra is not None for request in requests.values())
    yield from encoder_uses(config, passages * (1 + drawn))
    width = config.model.memory_vectors * config.model.encoder.width
    for request in requests.values():
        pairs = stage.batch_size * request.weight.shape[1]
        # Every query against the passages of its microbatch.
        yield Use(SIMILARITIES, "head", pairs * pairs / stage.grad_accum_steps, width)


def _check(config: Config, stage: Stage, key: str) -> None:
    temperature = ADAPTER.dials_of(stage, key).temperature
    name = f"{key}.dials.temperature".removeprefix("config.")
    check_range(name, temperature, (1e-6, 10**6))


ADAPTER = Adapter(
    name="retriever",
    module=Retriever,
    summary="An encoder whose memories find passages: a query's lies close to that of its passage.",
    capabilities=frozenset(("encodes", "retrieves")),
    build=lambda config, stage: Retriever(config.model, config.data.vocab_size),
    example=lambda config: jnp.zeros((1, config.model.chunk_length), jnp.int32),
    uses=_uses,
    reads=ENCODER_READS,
    untied=("encoder",),
    backbone="encoder",
    dials=RetrieverDials,
    check=_check,
)
