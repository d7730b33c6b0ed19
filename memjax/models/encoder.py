"""Tokens to memories: the one part that every model shares and that is trained once, then frozen.

Shapes: B chunks (batch and chunk axes folded), L token, K vector, D width of the vectors: the encoder's, or the bottleneck's where they are
not expanded; V vocabulary.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Model
from memjax.layers import Embed, Linear
from memjax.models.stack import make_stack

EMBEDDING_INIT = nn.initializers.normal(0.02)
"""Small, so that what mixing brings to the read-out is not drowned by the embedding of the token that stands there: at unit variance an
autoencoder takes twice the steps."""


class Encoder(nn.Module):
    """Embed, backbone, read-out, bottleneck (Badger 2026, memory models; read-out and bottleneck as there).

    The vectors keep the encoder's own width: the bridge to a decoder of another width belongs to that decoder, so that a frozen
    encoder stays the same function whoever reads it.

    Attributes:
      config: the model's settings.
      vocabulary: V.
      expand: False lets vectors leave at the bottleneck's width: there is no map up.

    With `config.noise` the vectors are noisy wherever a generator of that name is given (`rngs={"noise": key}`), which is in training.
    """

    config: Model
    vocabulary: int
    expand: bool = True

    @property
    def length(self) -> int:
        """Positions the backbone runs over."""
        extra = self.config.vectors if self.config.readout == "memory_tokens" else 0
        return self.config.chunk_length + extra

    def setup(self) -> None:
        config = self.config
        width, dtype = config.encoder.width, jnp.dtype(config.dtype)
        self.embed = Embed(self.vocabulary, width, dtype, EMBEDDING_INIT)
        self.backbone = make_stack(config, config.encoder, self.length)
        if config.readout == "memory_tokens":
            self.memory_tokens = self.param("memory_tokens", EMBEDDING_INIT, (config.vectors, width))
        if config.bottleneck:
            self.down = Linear(config.bottleneck, use_bias=True, dtype=dtype)
            if self.expand:
                self.up = Linear(width, use_bias=True, dtype=dtype)
        if "residual_noise" in config.compat and not (config.bottleneck and self.expand):
            raise ValueError(
                "config.model.compat: 'residual_noise' adds the memory to what leaves the bottleneck: it needs"
                " config.model.bottleneck, and config.model.combine='embedding' leaves out the map back to the memory's width"
            )

    def __call__(self, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"] | None = None) -> Float[Array, "B K D"]:
        """The memory of each chunk.

        Args:
          tokens: ids.
          valid: False where a position is padding; None when there is none. A chunk without a valid token still gives a vector:
            whoever reads it must mask it. Ignored under the quirk `attended_padding`.
        """
        batch, length = tokens.shape
        if valid is None or "attended_padding" in self.config.compat:
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
        return self._squeeze(memory)

    def _squeeze(self, memory: jax.Array) -> jax.Array:
        """Through the bottleneck, with noise on what passes it."""
        if not self.config.bottleneck:
            return self._disturb(memory)
        if "residual_noise" in self.config.compat:
            return memory + self.up(self.down(self._disturb(memory)))
        narrow = self._disturb(self.down(memory))
        return self.up(narrow) if self.expand else narrow

    def _disturb(self, x: jax.Array) -> jax.Array:
        """Adds uniform noise in [-q, q), its own for every element, where a generator is given."""
        q = self.config.noise
        if not q or not self.has_rng("noise"):
            return x
        low = 0.0 if "one_sided_noise" in self.config.compat else -q
        return x + jax.random.uniform(self.make_rng("noise"), x.shape, jnp.float32, low, low + 2 * q).astype(x.dtype)


def fold(x: jax.Array) -> jax.Array:
    """[B, C, ...] to [B * C, ...]: chunks of one row are independent, so they become rows of one larger batch."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def unfold(x: jax.Array, batch: int) -> jax.Array:
    """The inverse of `fold`."""
    return x.reshape(batch, -1, *x.shape[1:])
