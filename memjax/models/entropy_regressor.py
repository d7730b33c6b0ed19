"""Entropy regressor: one number for every token, such as how much it tells or how hard it is to say (Badger 2026, entropy estimation).

Shapes: B row, N token of a row, D width.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Model
from memjax.layers import Embed, Linear
from memjax.models.encoder import EMBEDDING_INIT
from memjax.models.stack import make_stack


class EntropyRegressor(nn.Module):
    """Embed, backbone, linear map to one number; a causal language model without its vocabulary at the end.

    Its backbone is `config.decoder`.

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
        # In float32 whatever the backbone computes in, like logits.
        self.value = Linear(1, use_bias=True)

    def __call__(self, tokens: Int[Array, "B N"], valid: Bool[Array, "B N"] | None = None) -> Float[Array, "B N"]:
        """Estimates in float32 and in the unit of what they are trained on; position t has read tokens 0..t.

        Args:
          tokens: ids.
          valid: False where a position is padding; None when there is none. Ignored under the quirk `attended_padding`.
        """
        if valid is None or "attended_padding" in self.config.compat:
            valid = jnp.ones(tokens.shape, bool)
        # Positions count real tokens, so that padding on the left does not shift them.
        positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
        return self.value(self.backbone(self.embed(tokens), positions, valid))[..., 0]
