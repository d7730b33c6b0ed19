"""Tokens to memories: the one part that every model shares and that is trained once, then frozen.

Shapes: B chunks (batch and chunk axes folded), L token, K vector, D width, V vocabulary.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Model
from memjax.layers import Backbone, Linear

EMBEDDING_INIT = nn.initializers.normal(0.02)
"""Small, so that what mixing brings to the read-out is not drowned by the embedding of the token that stands there: at unit variance an
autoencoder takes twice the steps."""


class Encoder(nn.Module):
    """Embed, backbone, read-out, bottleneck (Badger 2026, memory models; read-out and bottleneck as there).

    The vectors keep the encoder's own width: the bridge to a decoder of another width belongs to that decoder, so that a frozen
    encoder stays the same function whoever reads it.
    """

    config: Model
    vocabulary: int

    @property
    def length(self) -> int:
        """Positions the backbone runs over."""
        extra = self.config.vectors if self.config.readout == "memory_tokens" else 0
        return self.config.chunk_length + extra

    def setup(self) -> None:
        config = self.config
        width, dtype = config.encoder.width, jnp.dtype(config.dtype)
        self.embed = nn.Embed(self.vocabulary, width, dtype=dtype, embedding_init=EMBEDDING_INIT)
        self.backbone = Backbone(config.encoder, self.length, dtype, config.remat)
        if config.readout == "memory_tokens":
            self.memory_tokens = self.param("memory_tokens", EMBEDDING_INIT, (config.vectors, width))
        if config.bottleneck:
            self.down = Linear(config.bottleneck, use_bias=True, dtype=dtype)
            self.up = Linear(width, use_bias=True, dtype=dtype)

    def __call__(self, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"] | None = None) -> Float[Array, "B K D"]:
        """The memory of each chunk.

        Args:
          tokens: ids.
          valid: False where a position is padding; None when there is none. A chunk without a valid token still gives a vector:
            whoever reads it must mask it.
        """
        batch, length = tokens.shape
        if valid is None:
            valid = jnp.ones(tokens.shape, bool)
        x = self.embed(tokens)
        if self.config.readout == "memory_tokens":
            memory_tokens = jnp.broadcast_to(self.memory_tokens.astype(x.dtype), (batch, *self.memory_tokens.shape))
            x = jnp.concatenate([x, memory_tokens], axis=1)
            valid = jnp.pad(valid, ((0, 0), (0, self.config.vectors)), constant_values=True)
        # Positions count real tokens, so that padding on the left does not shift them.
        positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
        h = self.backbone(x, positions, valid)
        if self.config.readout == "memory_tokens":
            memory = h[:, length:]
        else:
            # The first position by which so many real tokens have passed is that of the last (but one) of them.
            passed = jnp.cumsum(valid, axis=1)
            wanted = jnp.maximum(passed[:, -1:] - (self.config.readout == "second_to_last"), 1)
            at = jnp.argmax(passed >= wanted, axis=1)
            memory = jnp.take_along_axis(h, at[:, None, None], axis=1)
        return self.up(self.down(memory)) if self.config.bottleneck else memory


def fold(x: jax.Array) -> jax.Array:
    """[B, C, ...] to [B * C, ...]: chunks of one row are independent, so they become rows of one larger batch."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def unfold(x: jax.Array, batch: int) -> jax.Array:
    """The inverse of `fold`."""
    return x.reshape(batch, -1, *x.shape[1:])
