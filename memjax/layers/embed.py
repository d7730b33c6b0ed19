"""Ids to vectors.

Shapes: V vocabulary, D width.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from memjax.sharding import constrain


class Embed(nn.Module):
    """A row of a table for every id; the table is float32, the rows are of `dtype`.

    A table that is split over devices is gathered first. Rows taken from a split one would leave every device with pieces of everyone's
    tokens.
    """

    vocabulary: int
    width: int
    dtype: jnp.dtype
    embedding_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, ids: Int[Array, "*any"]) -> Float[Array, "*any D"]:
        table_VD = self.param("embedding", self.embedding_init, (self.vocabulary, self.width)).astype(self.dtype)
        return constrain(jnp.take(constrain(table_VD, None, None), ids, axis=0), "batch")
