"""Ids to vectors.

Shapes: B batch, V vocabulary, D width, S shard of the batch.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from memjax.layers.linear import ROWS
from memjax.sharding import batch_parts, constrain, gathered


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def lookup(table: Float[Array, "V D"], ids: Int[Array, "B *any"], dtype: Any) -> Float[Array, "B *any D"]:
    """Rows of a table, rounded to `dtype`; their gradients are added up in float32.

    A table that is split over devices is gathered first, and every device adds up the gradient of its own tokens: no device sees the tokens
    of another.
    """
    rows = jnp.take(gathered(table.astype(dtype), ROWS, (None, None)), ids, axis=0)
    return constrain(rows, "batch")


def _forward(table: jax.Array, ids: jax.Array, dtype: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return lookup(table, ids, dtype), (table, ids)


def _backward(dtype: Any, saved: tuple[jax.Array, jax.Array], d_rows: jax.Array) -> tuple[jax.Array, None]:
    table, ids = saved
    shards = batch_parts(ids.shape[0])
    ids_Sn = constrain(ids.reshape(shards, -1), "batch")
    d_rows_SnD = constrain(d_rows.reshape(*ids_Sn.shape, -1).astype(jnp.float32), "batch")
    zeros_SVD = constrain(jnp.zeros((shards, *table.shape), jnp.float32), "batch", None, None)
    d_table_SVD = jax.vmap(lambda zeros_VD, ids_n, d_rows_nD: zeros_VD.at[ids_n].add(d_rows_nD))(zeros_SVD, ids_Sn, d_rows_SnD)
    d_table = jnp.sum(constrain(d_table_SVD, "batch", None, None), axis=0).astype(table.dtype)
    return gathered(d_table, ROWS, ROWS), None


lookup.defvjp(_forward, _backward)


class Embed(nn.Module):
    """A row of a table for every id; the table is float32, the rows are of `dtype`."""

    vocabulary: int
    width: int
    dtype: jnp.dtype
    embedding_init: nn.initializers.Initializer

    def setup(self) -> None:
        self.embedding = self.param("embedding", self.embedding_init, (self.vocabulary, self.width))

    def __call__(self, ids: Int[Array, "B *any"]) -> Float[Array, "B *any D"]:
        return lookup(self.embedding, ids, self.dtype)

    def as_head(self) -> Float[Array, "D V"]:
        """The table as the kernel of a head that is tied to it."""
        return self.embedding.T
