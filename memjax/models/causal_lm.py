"""Causal language model: the decoder on its own, over a whole row (Badger 2026, baselines).

Shapes: B row, N token of a row, M of its positions that are scored, D width, V vocabulary.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Model
from memjax.layers import Embed, Head
from memjax.models.encoder import EMBEDDING_INIT
from memjax.models.stack import make_stack


class CausalLM(nn.Module):
    """Embed, backbone, head; its backbone is `config.decoder`.

    Attributes:
      config: the model's settings.
      length: N, tokens in a row; a mixer accepts no other.
      vocabulary: V.
    """

    config: Model
    length: int
    vocabulary: int

    def setup(self) -> None:
        config = self.config
        dtype = jnp.dtype(config.dtype)
        self.embed = Embed(self.vocabulary, config.decoder.width, dtype, EMBEDDING_INIT)
        self.backbone = make_stack(config, config.decoder, self.length)
        self.head = Head(config.decoder.width, self.vocabulary, self.embed if config.decoder.tied_head else None)

    def hidden(self, tokens: Int[Array, "B N"], valid: Bool[Array, "B N"] | None = None) -> Float[Array, "B N D"]:
        """States after each token; `valid` is False where a position is padding."""
        if valid is None or "attended_padding" in self.config.compat:
            return self.backbone(self.embed(tokens))
        # Positions count real tokens, so that padding on the left does not shift them.
        positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
        return self.backbone(self.embed(tokens), positions, valid)

    def score(
        self,
        tokens: Int[Array, "B N"],
        labels: Int[Array, "B M"],
        valid: Bool[Array, "B N"] | None = None,
        start: int = 0,
    ) -> tuple[Float[Array, "B M"], Bool[Array, "B M"]]:
        """Nats of `labels`, and whether each is the most likely token; never holds the logits.

        Args:
          tokens: what is shown.
          labels: what follows positions start, start + 1, ...; the head is not applied to any other position.
          valid: False where a position is padding.
          start: the first position that is scored.
        """
        hidden_BND = self.hidden(tokens, valid)
        return self.head.score(hidden_BND[:, start : start + labels.shape[1]], labels)

    def __call__(self, tokens: Int[Array, "B N"], valid: Bool[Array, "B N"] | None = None) -> jax.Array:
        """Logits [B, N, V]; position t has read tokens 0..t."""
        return self.head(self.hidden(tokens, valid))
