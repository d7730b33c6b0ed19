"""Autoencoder: a chunk through one memory and back, all positions at once (Badger 2026, autoencoders).

Shapes: B chunk, L token, K vector, E encoder width, D decoder width, V vocabulary.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Model
from memjax.layers import Head, Linear
from memjax.models.encoder import Encoder
from memjax.models.stack import make_stack


def unroll(memory: Float[Array, "B D"], length: int) -> Float[Array, "B L W"]:
    """Sliding windows: out[:, t, j] = memory[:, (t + j) mod D] for j < D // 2. All differ while length <= D."""
    width = memory.shape[-1]
    index_LW = (jnp.arange(length)[:, None] + jnp.arange(width // 2)) % width
    return memory[:, index_LW]


class Autoencoder(nn.Module):
    """Encoder, expansion of its memory over the chunk, causal backbone, head.

    Position t of the output scores token t itself: there is no shift.
    """

    config: Model
    vocabulary: int

    def setup(self) -> None:
        config = self.config
        width, dtype = config.reconstructor.width, jnp.dtype(config.dtype)
        self.encoder = Encoder(config, self.vocabulary)
        if config.encoder.width != width:
            self.bridge = Linear(width, use_bias=True, dtype=dtype)
        if config.expansion == "unroll":
            self.unroll_projection = Linear(width, use_bias=True, dtype=dtype)
        self.backbone = make_stack(config, config.reconstructor, config.chunk_length)
        self.head = Head(width, self.vocabulary)

    def encode(self, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"] | None = None) -> Float[Array, "B K E"]:
        """The memory of each chunk."""
        return self.encoder(tokens, valid)

    def hidden(self, memory: Float[Array, "B K E"]) -> Float[Array, "B L D"]:
        """Decoder states that the head turns into scores of the chunk's tokens."""
        if self.config.encoder.width != self.config.reconstructor.width:
            memory = self.bridge(memory)
        batch, vectors, width = memory.shape
        length = self.config.chunk_length
        if self.config.expansion == "unroll":
            x = self.unroll_projection(unroll(memory.reshape(batch, vectors * width), length))
        else:
            # Each vector is repeated over its share of the positions.
            x = memory[:, jnp.arange(length) * vectors // length]
        return self.backbone(x)

    def decode(self, memory: Float[Array, "B K E"]) -> Float[Array, "B L V"]:
        """Logits of the chunk's tokens, from its memory alone."""
        return self.head(self.hidden(memory))

    def score(
        self, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"] | None = None
    ) -> tuple[Float[Array, "B L"], Bool[Array, "B L"]]:
        """Nats of each token given its chunk's memory, and whether it is the most likely one."""
        return self.head.score(self.hidden(self.encode(tokens, valid)), tokens)

    def __call__(self, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"] | None = None) -> jax.Array:
        """Logits [B, L, V]; position t scores token t."""
        return self.decode(self.encode(tokens, valid))
