"""Output head: logits, or token losses computed block-wise without materialising logits.

Shapes: B batch, T position, D width, V vocabulary; t positions of one block; S shard of the batch.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.layers.embed import Embed
from memjax.layers.linear import COLUMN_PARALLEL
from memjax.sharding import batch_parts, constrain, gather_params

BLOCK_TOKENS = 1024
"""Positions per device whose logits exist at a time."""


def block_length(batch: int, length: int, tokens: int = BLOCK_TOKENS) -> int:
    """Return t, the positions per block [batch, t] of about `tokens`.

    t is the largest divisor of `length` that fits. If that is less than half of the positions that
    fit, t does not divide and the last block is padded.
    """
    fits = max(1, min(length, tokens // batch))
    divisor = max(t for t in range(1, fits + 1) if length % t == 0)
    return divisor if 2 * divisor >= fits else math.ceil(length / math.ceil(length / fits))


def _logits(hidden_BtD: jax.Array, kernel_DV: jax.Array) -> jax.Array:
    return jnp.einsum("btd,dv->btv", hidden_BtD, kernel_DV, preferred_element_type=jnp.float32)


def _blocks(x: jax.Array, block: int) -> jax.Array:
    """Reshape [B, T, ...] to [T / t, B, t, ...], T padded with zeros.

    The batch axis stays whole, so that a sharded batch is not moved.
    """
    batch, length = x.shape[:2]
    if length % block:
        x = jnp.pad(x, ((0, 0), (0, -length % block), *((0, 0),) * (x.ndim - 2)))
        length = x.shape[1]
    return jnp.moveaxis(x.reshape(batch, length // block, block, *x.shape[2:]), 1, 0)


def _unblocks(x: jax.Array, length: int) -> jax.Array:
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])[:, :length]


def _gather_kernel(kernel: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Cast the kernel to the compute dtype and gather it once, outside the block loop."""
    return constrain(kernel.astype(dtype), None, "tensor")


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def cross_entropy(
    hidden: Float[Array, "B T D"],
    kernel: Float[Array, "D V"],
    labels: Int[Array, "B T"],
    block: int,
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """Return -log softmax(hidden @ kernel)[label] in nats, and whether the label is the argmax.

    Runs over blocks of positions and recomputes each block's logits in the backward pass: `[B, T,
    V]` never exists.
    """
    return _scan_forward(hidden, kernel, labels, block)[:2]


def _scan_forward(
    hidden: jax.Array, kernel: jax.Array, labels: jax.Array, block: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    kernel_DV = _gather_kernel(kernel, hidden.dtype)

    def body(
        _: None, xs: tuple[jax.Array, jax.Array]
    ) -> tuple[None, tuple[jax.Array, jax.Array, jax.Array]]:
        hidden_BtD, labels_Bt = xs
        logits = _logits(hidden_BtD, kernel_DV)
        lse = jax.nn.logsumexp(logits, axis=-1)
        at_label = jnp.take_along_axis(logits, labels_Bt[..., None], axis=-1)[..., 0]
        return None, (lse - at_label, jnp.argmax(logits, axis=-1) == labels_Bt, lse)

    _, out = jax.lax.scan(body, None, (_blocks(hidden, block), _blocks(labels, block)))
    nats, is_argmax, lse = (_unblocks(y, hidden.shape[1]) for y in out)
    return nats, is_argmax, lse


def _forward(
    hidden: jax.Array, kernel: jax.Array, labels: jax.Array, block: int
) -> tuple[Any, tuple[jax.Array, ...]]:
    nats, is_argmax, lse = _scan_forward(hidden, kernel, labels, block)
    return (nats, is_argmax), (hidden, kernel, labels, lse)


def _backward(
    block: int, saved: tuple[jax.Array, ...], cotangents: tuple[jax.Array, jax.Array]
) -> tuple[Any, ...]:
    hidden, kernel, labels, lse = saved
    d_nats = cotangents[0]
    kernel_DV = _gather_kernel(kernel, hidden.dtype)
    shards = batch_parts(hidden.shape[0])

    def by_shard(x: jax.Array) -> jax.Array:
        return constrain(x.reshape(shards, -1, *x.shape[1:]), "batch")

    def body(d_kernel_SDV: jax.Array, xs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        hidden_BtD, labels_Bt, lse_Bt, d_nats_Bt = xs
        p_BtV = jnp.exp(_logits(hidden_BtD, kernel_DV) - lse_Bt[..., None])
        is_label = jnp.arange(p_BtV.shape[-1]) == labels_Bt[..., None]
        d_logits = ((p_BtV - is_label) * d_nats_Bt[..., None]).astype(hidden.dtype)
        d_hidden = jnp.einsum("btv,dv->btd", d_logits, kernel_DV)
        # One sum per shard of the batch: they are added once, after the last block.
        d_kernel_SDV += jnp.einsum(
            "sbtd,sbtv->sdv",
            by_shard(hidden_BtD),
            by_shard(d_logits),
            preferred_element_type=jnp.float32,
        )
        return constrain(d_kernel_SDV, "batch", None, "tensor"), d_hidden

    blocks = tuple(_blocks(x, block) for x in (hidden, labels, lse, d_nats))
    zeros = constrain(jnp.zeros((shards, *kernel.shape), jnp.float32), "batch", None, "tensor")
    d_kernel_SDV, d_hidden = jax.lax.scan(body, zeros, blocks)
    # Of one block, the product would be fused with the transpose of a tied table. XLA for CPUs
    # cannot compute that in bfloat16.
    d_kernel_SDV = jax.lax.optimization_barrier(d_kernel_SDV)
    d_kernel = jnp.sum(d_kernel_SDV, axis=0).astype(kernel.dtype)
    # The gradient is laid out as the kernel is stored.
    d_kernel = gather_params(d_kernel, COLUMN_PARALLEL, COLUMN_PARALLEL)
    return _unblocks(d_hidden, hidden.shape[1]), d_kernel, None


cross_entropy.defvjp(_forward, _backward)


class Head(nn.Module):
    """Linear map from width to vocabulary without bias; logits and losses in float32.

    Attributes:
      width: D.
      vocab_size: V.
      tied: token table whose transpose is the kernel; None for a kernel of its own.
    """

    width: int
    vocab_size: int
    tied: Embed | None = None

    def setup(self) -> None:
        if self.tied is None:
            self.kernel = self.param(
                "kernel", nn.initializers.lecun_normal(), (self.width, self.vocab_size)
            )
        else:
            self.kernel = self.tied.embedding.T

    def __call__(self, hidden: Float[Array, "*any D"]) -> Float[Array, "*any V"]:
        return jnp.matmul(
            hidden, self.kernel.astype(hidden.dtype), preferred_element_type=jnp.float32
        )

    def token_losses(
        self, hidden: Float[Array, "B *any D"], labels: Int[Array, "B *any"]
    ) -> tuple[Float[Array, "B *any"], Bool[Array, "B *any"]]:
        """Return the cross entropy of `labels` in nats and whether each is the argmax.

        Full logits are never materialised.
        """
        batch = len(labels)
        length = labels.size // batch
        block = block_length(batch // batch_parts(batch), length)
        nats, is_argmax = cross_entropy(
            hidden.reshape(batch, length, -1), self.kernel, labels.reshape(batch, length), block
        )
        return nats.reshape(labels.shape), is_argmax.reshape(labels.shape)
