"""Encoder: tokens to memories; every model shares it, and it is trained once and then frozen.

Shapes: B chunks (batch and chunk axes folded), L token, K vector, D width of the vectors: the
encoder's, or the bottleneck's where they are not expanded; V vocabulary.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import ConfigError, Model
from memjax.errors import MemjaxError
from memjax.layers import Embed, Linear, make_backbone

EMBEDDING_INIT = nn.initializers.normal(0.02)
"""Small, so that what mixing brings to the read-out is not drowned by the embedding of the token
that stands there: at unit variance an autoencoder takes twice the steps."""


class Encoder(nn.Module):
    """Token table, backbone, readout and bottleneck.

    Source: Badger 2026, memory models, its readout and bottleneck too.

    The vectors keep the encoder's own width: the bridge to a decoder of another width belongs to
    that decoder, so that a frozen encoder stays the same function whoever reads it.

    Attributes:
      config: the model's settings.
      vocab_size: V.
      expand: False lets vectors leave at the bottleneck's width: there is no map up.

    With `config.noise` the vectors are noisy wherever a generator of that name is given
    (`rngs={"noise": key}`), which is in training.
    """

    config: Model
    vocab_size: int
    expand: bool = True

    @property
    def length(self) -> int:
        """Return the number of positions that the backbone runs over."""
        extra = self.config.memory_vectors if self.config.readout == "memory_tokens" else 0
        return self.config.chunk_length + extra

    def setup(self) -> None:
        config = self.config
        width, dtype = config.encoder.width, jnp.dtype(config.dtype)
        self.embed = Embed(self.vocab_size, width, dtype, EMBEDDING_INIT)
        self.backbone = make_backbone(config, config.encoder, self.length)
        if config.readout == "memory_tokens":
            self.memory_tokens = self.param(
                "memory_tokens", EMBEDDING_INIT, (config.memory_vectors, width)
            )
        if config.bottleneck:
            self.down = Linear(config.bottleneck, use_bias=True, dtype=dtype)
            if self.expand:
                self.up = Linear(width, use_bias=True, dtype=dtype)
        ConfigError.require(
            "residual_noise" not in config.compat or (config.bottleneck and self.expand),
            "config.model.compat: 'residual_noise' adds the memory to what leaves the bottleneck:"
            " it needs config.model.bottleneck, and config.model.memory_injection='embedding'"
            " leaves out the map back to the memory's width",
        )

    def __call__(
        self, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"] | None = None
    ) -> Float[Array, "B K D"]:
        """The memory of each chunk.

        Args:
          tokens: ids.
          valid: False where a position is padding; None when there is none. A chunk without a valid
            token still gives a vector: whoever reads it must mask it. Ignored under the quirk
            `attended_padding`.
        """
        require_places(tokens, self.config.chunk_length)
        batch, length = tokens.shape
        x, valid = self.embed(tokens), read_positions(self.config, tokens, valid)
        if self.config.readout == "memory_tokens":
            memory_tokens = jnp.broadcast_to(
                self.memory_tokens.astype(x.dtype), (batch, *self.memory_tokens.shape)
            )
            x = jnp.concatenate([x, memory_tokens], axis=1)
            valid = jnp.pad(valid, ((0, 0), (0, self.config.memory_vectors)), constant_values=True)
        h = self.backbone(x, valid=valid)
        if self.config.readout == "memory_tokens":
            memory = h[:, length:]
        else:
            # The first position by which so many real tokens have passed is that of the last (but
            # one) of them.
            passed = jnp.cumsum(valid, axis=1)
            wanted = jnp.maximum(passed[:, -1:] - (self.config.readout == "second_to_last"), 1)
            at = jnp.argmax(passed >= wanted, axis=1)
            memory = jnp.take_along_axis(h, at[:, None, None], axis=1)
        return self._squeeze(memory)

    def _squeeze(self, memory: jax.Array) -> jax.Array:
        """Return memories that passed the bottleneck, with noise on what passes it."""
        if not self.config.bottleneck:
            return self._disturb(memory)
        if "residual_noise" in self.config.compat:
            return memory + self.up(self.down(self._disturb(memory)))
        narrow = self._disturb(self.down(memory))
        return self.up(narrow) if self.expand else narrow

    def _disturb(self, x: jax.Array) -> jax.Array:
        """Add uniform noise in [-q, q), its own for every element, where a generator is given."""
        q = self.config.noise
        if not q or not self.has_rng("noise"):
            return x
        low = 0.0 if "one_sided_noise" in self.config.compat else -q
        return x + jax.random.uniform(
            self.make_rng("noise"), x.shape, jnp.float32, low, low + 2 * q
        ).astype(x.dtype)


def require_places(tokens: Int[Array, "B *any L"], length: int, chunks: int | None = None) -> None:
    """Raise MemjaxError for more tokens or chunks than a model has places for, or other axes.

    Args:
      tokens: [B, L], or with `chunks` [B, C, L].
      length: L, at most.
      chunks: C, at most; 0 is any number.
    """
    places = ("B", "L") if chunks is None else ("B", "C", "L")
    most = f"at most {chunks} chunks of {length} tokens" if chunks else f"at most {length} tokens"
    MemjaxError.require(
        tokens.ndim == len(places)
        and tokens.shape[-1] <= length
        and (not chunks or tokens.shape[1] <= chunks),
        f"tokens: shape {tokens.shape}, expected [{', '.join(places)}] with {most}",
    )


def read_positions(
    config: Model, tokens: Int[Array, "*any L"], valid: Bool[Array, "*any L"] | None
) -> Bool[Array, "*any L"]:
    """Return where tokens are read: everywhere without padding, and under `attended_padding`."""
    if valid is None or "attended_padding" in config.compat:
        return jnp.ones(tokens.shape, bool)
    return valid


def fold(x: jax.Array) -> jax.Array:
    """Reshape [B, C, ...] to [B * C, ...]: chunks become sequences of one larger batch."""
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def unfold(x: jax.Array, batch: int) -> jax.Array:
    """Invert `fold`."""
    return x.reshape(batch, -1, *x.shape[1:])
