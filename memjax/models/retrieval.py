"""Retrieval: passages by the direction of their memories, or by a transformer that compares the memories (Badger 2026, retrieval).

Shapes: B row or passage, C candidate, M chunk to encode, L token, K vector, E encoder width, D decoder width.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Model
from memjax.layers import Backbone, Linear
from memjax.models.encoder import Encoder, fold, unfold

MARK_INIT = nn.initializers.normal(1.0)
"""As large as a normalised memory, so that the first block already sees which vector asks."""
MASKED = -1e30
"""Logit of a candidate that is none; finite, so that a row without candidates has no NaN."""
_SMALLEST_SQUARE = 1e-12


def unit(x: Float[Array, "*any E"]) -> Float[Array, "*any E"]:
    """`x` divided by its norm, in float32. A vector shorter than 1e-6 stays as it is: its gradient is finite, at zero too."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.where(square > _SMALLEST_SQUARE, square, 1.0))


class Retriever(nn.Module):
    """An encoder whose memories are compared by cosine similarity."""

    config: Model
    vocabulary: int

    def setup(self) -> None:
        self.encoder = Encoder(self.config, self.vocabulary)

    def embed(self, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"] | None = None) -> Float[Array, "B KE"]:
        """Unit vectors in float32: a chunk's K memory vectors side by side, normalised together.

        Args:
          tokens: ids.
          valid: False where a position is padding; None when there is none.
        """
        memory = self.encoder(tokens, valid)
        return unit(memory.reshape(memory.shape[0], -1))

    def __call__(self, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"] | None = None) -> jax.Array:
        """The same as `embed`."""
        return self.embed(tokens, valid)


class Ranker(nn.Module):
    """A transformer over the memories of a query and its candidates that scores each candidate.

    It reads a set: no position is told from another but the query, by a learned mark, and all read all. Scores therefore follow the
    candidates into any order, and a set may have any size. `config.decoder` sets the transformer up, whose last norm is the
    module's own: without a bias, since what all candidates' scores share has no gradient.

    Attributes:
      config: the model's settings.
      candidates: C, chunks in a row.
      vocabulary: V.
    """

    config: Model
    candidates: int
    vocabulary: int

    def setup(self) -> None:
        config, decoder = self.config, self.config.decoder
        if decoder.kind != "transformer":
            raise ValueError(
                f"model.decoder.kind={decoder.kind!r} cannot rank a set: its weights belong to positions; a ranker needs 'transformer'"
            )
        if not decoder.final_norm:
            raise ValueError("model.decoder.final_norm=False cannot rank a set: a ranker scores normalised states")
        dtype = jnp.dtype(config.dtype)
        self.encoder = Encoder(config, self.vocabulary)
        if config.vectors * config.encoder.width != decoder.width:
            self.bridge = Linear(decoder.width, use_bias=True, dtype=dtype)
        self.query_mark = self.param("query_mark", MARK_INIT, (decoder.width,))
        transformer = dataclasses.replace(decoder, causal=False, final_norm=False)
        self.backbone = Backbone(transformer, 1 + self.candidates, dtype, config.remat)
        if decoder.norm == "rms":
            self.norm = nn.RMSNorm(epsilon=1e-6, dtype=dtype)
        else:
            self.norm = nn.LayerNorm(epsilon=1e-5, use_bias=False, dtype=dtype)
        self.score = Linear(1)

    def encode(self, tokens: Int[Array, "B M L"], valid: Bool[Array, "B M L"] | None = None) -> Float[Array, "B M K E"]:
        """Memories of all given chunks, queries and candidates alike, in one call."""
        return unfold(self.encoder(fold(tokens), None if valid is None else fold(valid)), tokens.shape[0])

    def rank(
        self,
        query: Float[Array, "B K E"],
        candidates: Float[Array, "B C K E"],
        valid: Bool[Array, "B C"] | None = None,
    ) -> Float[Array, "B C"]:
        """Logits in float32 of which candidate the query asks for.

        Args:
          query: memory of the query, from `encode`.
          candidates: memories of the candidates.
          valid: False where a candidate is none: no other reads it, and its logit is `MASKED`.
        """
        batch, n = candidates.shape[:2]
        x = jnp.concatenate([query[:, None], candidates], axis=1).reshape(batch, 1 + n, -1)
        if x.shape[-1] != self.config.decoder.width:
            x = self.bridge(x)
        x = x.at[:, 0].add(self.query_mark.astype(x.dtype))
        if valid is None:
            valid = jnp.ones((batch, n), bool)
        read = jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True)
        h = self.norm(self.backbone(x, jnp.zeros(read.shape, jnp.int32), read))
        return jnp.where(valid, self.score(h[:, 1:])[..., 0], MASKED)

    def __call__(self, tokens: Int[Array, "B C L"], valid: Bool[Array, "B C L"] | None = None) -> Float[Array, "B C"]:
        """Logits of a row's chunks where its first chunk asks."""
        memories = self.encode(tokens, valid)
        return self.rank(memories[:, 0], memories, None if valid is None else valid.any(axis=-1))
