"""Autoencoder: a chunk to one memory and back, all positions at once.

Source: Badger 2026, autoencoders.

Shapes: B chunk, L token, K vector, E encoder width, D decoder width, V vocabulary.
"""

from collections.abc import Iterator
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Config, ConfigError, Model, Stage
from memjax.layers import Head, Linear, make_backbone
from memjax.models.adapter import ENCODER_READS, Adapter, one_by_one
from memjax.models.elastic import ElasticDials, check_lengths, check_vectors, draw_kept, whole
from memjax.models.encoder import Encoder, fold
from memjax.models.request import SHORTEST_CHUNK, Asking, Request, Requests, Variables
from memjax.models.uses import Use, decoder_uses, encoder_uses


def unroll(memory: Float[Array, "B D"], length: int) -> Float[Array, "B L W"]:
    """Return sliding windows: out[:, t, j] = memory[:, (t + j) mod D] for j < D // 2.

    All of them differ while length <= D.
    """
    width = memory.shape[-1]
    index_LW = (jnp.arange(length)[:, None] + jnp.arange(width // 2)) % width
    return memory[:, index_LW]


class Autoencoder(nn.Module):
    """Encoder, expansion of its memory over the chunk, causal backbone, head.

    Position t of the output scores token t itself: there is no shift.
    """

    READS_FEWER: ClassVar[bool] = True
    """It decodes memories of fewer vectors than it has, as the others are zeros, and of shorter
    chunks, as their last positions are padding."""

    config: Model
    vocab_size: int

    def setup(self) -> None:
        config = self.config
        width, dtype = config.reconstructor.width, jnp.dtype(config.dtype)
        self.encoder = Encoder(config, self.vocab_size)
        if config.encoder.width != width:
            self.bridge = Linear(width, use_bias=True, dtype=dtype)
        if config.expansion != "repeat":
            self.unroll_projection = Linear(width, use_bias=True, dtype=dtype)
        self.backbone = make_backbone(config, config.reconstructor, config.chunk_length)
        self.head = Head(width, self.vocab_size)

    def encode(
        self, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"] | None = None
    ) -> Float[Array, "B K E"]:
        """The memory of each chunk."""
        return self.encoder(tokens, valid)

    def hidden(
        self, memory: Float[Array, "B k E"], kept: Int[Array, " B"] | None = None
    ) -> Float[Array, "B L D"]:
        """Return the states that the head turns into logits of the chunk's tokens.

        Args:
          memory: K vectors, or fewer: zeros stand for the others.
          kept: the vectors that are kept of each memory; None for all.
        """
        memory = whole(memory, self.config.memory_vectors, kept)
        if self.config.encoder.width != self.config.reconstructor.width:
            memory = self.bridge(memory)
        batch, vectors, width = memory.shape
        length = self.config.chunk_length
        if self.config.expansion == "unroll":
            x = self.unroll_projection(unroll(memory.reshape(batch, vectors * width), length))
        elif self.config.expansion == "unroll_each":
            windows = unroll(fold(memory), length).reshape(batch, vectors, length, width // 2)
            x = self.unroll_projection(jnp.moveaxis(windows, 1, 2).reshape(batch, length, -1))
        else:
            # Each vector is repeated over its share of the positions.
            x = memory[:, jnp.arange(length) * vectors // length]
        return self.backbone(x)

    def decode(self, memory: Float[Array, "B K E"]) -> Float[Array, "B L V"]:
        """Return the logits of the chunk's tokens, from its memory alone."""
        return self.head(self.hidden(memory))

    def score(
        self,
        tokens: Int[Array, "B L"],
        valid: Bool[Array, "B L"] | None = None,
        kept: Int[Array, " B"] | None = None,
    ) -> tuple[Float[Array, "B L"], Bool[Array, "B L"]]:
        """Nats of each token given its chunk's memory, and whether it is the most likely one."""
        return self.head.token_losses(self.hidden(self.encode(tokens, valid), kept), tokens)

    def __call__(
        self, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"] | None = None
    ) -> jax.Array:
        """Logits [B, L, V]; position t scores token t."""
        return self.decode(self.encode(tokens, valid))


def _answer(asking: Asking, variables: Variables, request: Request) -> tuple[jax.Array, jax.Array]:
    chunks = fold(request.inputs)
    kept = draw_kept(asking, len(chunks))
    nats, correct = asking.apply(variables, "score", chunks, chunks != asking.ids.pad, kept)
    return nats.reshape(request.inputs.shape), correct.reshape(request.inputs.shape)


def _uses(config: Config, stage: Stage, requests: Requests) -> Iterator[Use]:
    model, count = config.model, stage.batch_size * config.chunks * len(requests)
    yield from encoder_uses(config, count)
    yield Use("bridge", "bridge", count * model.memory_vectors)
    yield Use("unroll_projection", "bridge", count * model.chunk_length)
    yield from decoder_uses(model.reconstructor, count, model.chunk_length, model.chunk_length)


def _check(config: Config, stage: Stage, key: str) -> None:
    check_vectors(config, ADAPTER.dials_of(stage, key).fewest_vectors, key)
    check_lengths(config, stage, key)
    model, shortest = config.model, stage.dials.get(SHORTEST_CHUNK, 0)
    ConfigError.require(
        model.expansion != "repeat" or model.memory_vectors == 1 or not shortest,
        f"{key}.dials.{SHORTEST_CHUNK}: {shortest}, expected 0 with config.model.expansion='repeat'"
        " and several vectors, of which a short chunk would not read the last. Use 'unroll_each'",
    )


ADAPTER = Adapter(
    name="autoencoder",
    module=Autoencoder,
    summary="An encoder turns each chunk of a text into a memory; a decoder reconstructs all tokens"
    " of the chunk from that alone.",
    capabilities=frozenset(("encodes", "reconstructs")),
    build=lambda config, stage: Autoencoder(config.model, config.data.vocab_size),
    example=lambda config: jnp.zeros((1, config.model.chunk_length), jnp.int32),
    uses=_uses,
    answer=one_by_one(_answer),
    reads=ENCODER_READS | {"expansion"},
    untied=("encoder", "reconstructor"),
    backbone="reconstructor",
    dials=ElasticDials,
    check=_check,
)
