"""Token embeddings.

Shapes: B batch, V vocabulary, D width, S shard of the batch.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from memjax.errors import MemjaxError
from memjax.layers.linear import ROW_PARALLEL
from memjax.sharding import batch_parts, constrain, gather_params


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def lookup(
    table: Float[Array, "V D"], ids: Int[Array, "B *any"], dtype: Any
) -> Float[Array, "B *any D"]:
    """Return rows of a table, rounded to `dtype`; their gradients are accumulated in float32.

    A table that is split over devices is gathered first, and each device accumulates the gradient
    of its own tokens: no device receives the tokens of another.
    """
    # Gathered in the narrower of the two types; of a narrow table, only the rows are widened.
    narrow = table.astype(dtype) if jnp.dtype(dtype).itemsize < table.dtype.itemsize else table
    rows = jnp.take(gather_params(narrow, ROW_PARALLEL, (None, None)), ids, axis=0)
    return constrain(rows.astype(dtype), "batch")


def _forward(
    table: jax.Array, ids: jax.Array, dtype: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return lookup(table, ids, dtype), (table, ids)


def _backward(
    dtype: Any, saved: tuple[jax.Array, jax.Array], d_rows: jax.Array
) -> tuple[jax.Array, None]:
    table, ids = saved
    shards = batch_parts(ids.shape[0])
    ids_Sn = constrain(ids.reshape(shards, -1), "batch")
    d_rows_SnD = constrain(d_rows.reshape(*ids_Sn.shape, -1).astype(jnp.float32), "batch")
    zeros_SVD = constrain(jnp.zeros((shards, *table.shape), jnp.float32), "batch", None, None)
    d_table_SVD = jax.vmap(lambda zeros_VD, ids_n, d_rows_nD: zeros_VD.at[ids_n].add(d_rows_nD))(
        zeros_SVD, ids_Sn, d_rows_SnD
    )
    d_table = jnp.sum(constrain(d_table_SVD, "batch", None, None), axis=0).astype(table.dtype)
    return gather_params(d_table, ROW_PARALLEL, ROW_PARALLEL), None


lookup.defvjp(_forward, _backward)


class Embed(nn.Module):
    """Token table: parameters [V, D], outputs of `dtype`."""

    vocab_size: int
    width: int
    dtype: jnp.dtype
    embedding_init: nn.initializers.Initializer

    def setup(self) -> None:
        self.embedding = self.param("embedding", self.embedding_init, (self.vocab_size, self.width))

    def __call__(self, ids: Int[Array, "B *any"]) -> Float[Array, "B *any D"]:
        # Under jit, ids have no values yet; of other processes' ids, there are none here.
        if not isinstance(ids, jax.core.Tracer) and getattr(ids, "is_fully_addressable", True):
            given, most = np.asarray(ids), self.vocab_size - 1
            wrong = given[(given < 0) | (given > most)]
            MemjaxError.require(not wrong.size, f"ids: {wrong[:1]}, expected 0 to {most}")
        return lookup(self.embedding, ids, self.dtype)
