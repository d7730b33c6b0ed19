"""Token embeddings.

Shapes: B batch, V vocabulary, D width; in gradients also S shard of the batch, n token of a shard,
T split of the rows, R row of a block.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from memjax.errors import MemjaxError
from memjax.layers.linear import ROW_PARALLEL
from memjax.sharding import axis_size, batch_parts, constrain, gather_params


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def lookup(
    table: Float[Array, "V D"], ids: Int[Array, "B *any"], dtype: Any
) -> Float[Array, "B *any D"]:
    """Return rows of a table, rounded to `dtype`; their gradients are accumulated in float32.

    Columns of a table that are split over devices (`fsdp`) are gathered first, and each device
    accumulates the gradient of its own tokens: no device receives the tokens of another. Rows stay
    split (`tensor`), and the devices that share a product add what each finds.
    """
    # Gathered in the narrower of the two types; of a narrow table, only the rows are widened.
    narrow = table.astype(dtype) if jnp.dtype(dtype).itemsize < table.dtype.itemsize else table
    rows = jnp.take(gather_params(narrow, ROW_PARALLEL, ("tensor", None)), ids, axis=0)
    return constrain(rows.astype(dtype), "batch")


def _forward(
    table: jax.Array, ids: jax.Array, dtype: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return lookup(table, ids, dtype), (table, ids)


def _add_rows(
    sums_TRD: jax.Array, split_n: jax.Array, row_n: jax.Array, rows_nD: jax.Array
) -> jax.Array:
    return sums_TRD.at[split_n, row_n].add(rows_nD, mode="drop")


def _backward(
    dtype: Any, saved: tuple[jax.Array, jax.Array], d_rows: jax.Array
) -> tuple[jax.Array, None]:
    table, ids = saved
    (rows, width), shards = table.shape, batch_parts(ids.shape[0])
    ids_Sn = constrain(ids.reshape(shards, -1), "batch")
    d_rows_SnD = constrain(d_rows.reshape(*ids_Sn.shape, -1).astype(jnp.float32), "batch")
    # Rows are split over `tensor`. Where devices keep a part of their sum, a block of rows is added
    # at a time: as many blocks as parts, but none with fewer rows than a device has tokens.
    split = axis_size("tensor")
    blocks = max(1, min(axis_size("fsdp"), rows // split // ids_Sn.shape[1]))
    size = math.ceil(rows / (split * blocks))

    split_Sn, block_Sn, row_Sn = jnp.unravel_index(ids_Sn, (split, blocks, size))

    def block_sum(block: jax.Array | int) -> jax.Array:
        """Return the gradient of a block of rows of every split [T, R, D]."""
        zeros_STRD = jnp.zeros((shards, split, size, width), jnp.float32)
        zeros_STRD = constrain(zeros_STRD, "batch", "tensor", None, None)
        # Tokens of other blocks are out of bounds.
        at_Sn = jnp.where(block_Sn == block, row_Sn, size)
        d_STRD = jax.vmap(_add_rows)(zeros_STRD, split_Sn, at_Sn, d_rows_SnD)
        d_TRD = jnp.sum(constrain(d_STRD, "batch", "tensor", None, None), axis=0)
        return d_TRD.astype(table.dtype)

    if blocks == 1:
        d_TBRD = block_sum(0)
    else:
        d_BTRD = jax.lax.map(
            lambda block: constrain(block_sum(block), "tensor", None, "fsdp"), jnp.arange(blocks)
        )
        d_TBRD = jnp.moveaxis(d_BTRD, 0, 1)
    d_table = d_TBRD.reshape(-1, width)[:rows]
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
