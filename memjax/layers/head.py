"""From hidden states to the vocabulary: logits for those who want them, losses without them for training.

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
from memjax.layers.linear import COLUMNS
from memjax.sharding import batch_parts, constrain, gathered

BLOCK_TOKENS = 1024
"""Positions whose logits a device holds at a time."""


def block_length(batch: int, length: int, tokens: int = BLOCK_TOKENS) -> int:
    """Positions t of a block [batch, t] of about `tokens`: the largest divisor of `length` that fits.

    Where that is less than half of what fits, t is no divisor and the last block is filled up.
    """
    fits = max(1, min(length, tokens // batch))
    divisor = max(t for t in range(1, fits + 1) if length % t == 0)
    return divisor if 2 * divisor >= fits else math.ceil(length / math.ceil(length / fits))


def _logits(hidden_BtD: jax.Array, kernel_DV: jax.Array) -> jax.Array:
    return jnp.einsum("btd,dv->btv", hidden_BtD, kernel_DV, preferred_element_type=jnp.float32)


def _blocks(x: jax.Array, block: int) -> jax.Array:
    """[B, T, ...] to [T / t, B, t, ...], T filled up with zeros: the batch axis stays whole, so that a sharded batch stays where it is."""
    batch, length = x.shape[:2]
    if length % block:
        x = jnp.pad(x, ((0, 0), (0, -length % block), *((0, 0),) * (x.ndim - 2)))
        length = x.shape[1]
    return jnp.moveaxis(x.reshape(batch, length // block, block, *x.shape[2:]), 1, 0)


def _unblocks(x: jax.Array, length: int) -> jax.Array:
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])[:, :length]


def _gathered(kernel: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The kernel as every block reads it: rounded, then brought together once, not once a block."""
    return constrain(kernel.astype(dtype), None, "tensor")


def _stored(d_kernel: jax.Array) -> jax.Array:
    """The kernel's gradient where the kernel is stored."""
    return gathered(d_kernel, COLUMNS, COLUMNS)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def cross_entropy(
    hidden: Float[Array, "B T D"], kernel: Float[Array, "D V"], labels: Int[Array, "B T"], block: int
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """-log softmax(hidden @ kernel)[label] in nats, and whether the label is the most likely token.

    Goes over blocks of positions and recomputes each block's logits in the backward pass: `[B, T, V]` never exists.
    """
    nats, correct, _ = _scan_forward(hidden, kernel, labels, block)
    return nats, correct


def _scan_forward(
    hidden: jax.Array, kernel: jax.Array, labels: jax.Array, block: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    kernel_DV = _gathered(kernel, hidden.dtype)

    def body(_: None, xs: tuple[jax.Array, jax.Array]) -> tuple[None, tuple[jax.Array, jax.Array, jax.Array]]:
        hidden_BtD, labels_Bt = xs
        logits = _logits(hidden_BtD, kernel_DV)
        lse = jax.nn.logsumexp(logits, axis=-1)
        at_label = jnp.take_along_axis(logits, labels_Bt[..., None], axis=-1)[..., 0]
        return None, (lse - at_label, jnp.argmax(logits, axis=-1) == labels_Bt, lse)

    _, out = jax.lax.scan(body, None, (_blocks(hidden, block), _blocks(labels, block)))
    nats, correct, lse = (_unblocks(y, hidden.shape[1]) for y in out)
    return nats, correct, lse


def _forward(hidden: jax.Array, kernel: jax.Array, labels: jax.Array, block: int) -> tuple[Any, tuple[jax.Array, ...]]:
    nats, correct, lse = _scan_forward(hidden, kernel, labels, block)
    return (nats, correct), (hidden, kernel, labels, lse)


def _backward(block: int, saved: tuple[jax.Array, ...], cotangents: tuple[jax.Array, jax.Array]) -> tuple[Any, ...]:
    hidden, kernel, labels, lse = saved
    d_nats = cotangents[0]
    kernel_DV = _gathered(kernel, hidden.dtype)
    shards = batch_parts(hidden.shape[0])

    def by_shard(x: jax.Array) -> jax.Array:
        return constrain(x.reshape(shards, -1, *x.shape[1:]), "batch")

    def body(d_kernel_SDV: jax.Array, xs: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        hidden_BtD, labels_Bt, lse_Bt, d_nats_Bt = xs
        p_BtV = jnp.exp(_logits(hidden_BtD, kernel_DV) - lse_Bt[..., None])
        is_label = jnp.arange(p_BtV.shape[-1]) == labels_Bt[..., None]
        d_logits = ((p_BtV - is_label) * d_nats_Bt[..., None]).astype(hidden.dtype)
        d_hidden = jnp.einsum("btv,dv->btd", d_logits, kernel_DV)
        # A sum for every shard of the batch: they are added up once, after the last block.
        d_kernel_SDV += jnp.einsum(
            "sbtd,sbtv->sdv", by_shard(hidden_BtD), by_shard(d_logits), preferred_element_type=jnp.float32
        )
        return constrain(d_kernel_SDV, "batch", None, "tensor"), d_hidden

    blocks = tuple(_blocks(x, block) for x in (hidden, labels, lse, d_nats))
    zeros = constrain(jnp.zeros((shards, *kernel.shape), jnp.float32), "batch", None, "tensor")
    d_kernel_SDV, d_hidden = jax.lax.scan(body, zeros, blocks)
    return _unblocks(d_hidden, hidden.shape[1]), _stored(jnp.sum(d_kernel_SDV, axis=0).astype(kernel.dtype)), None


cross_entropy.defvjp(_forward, _backward)


class Head(nn.Module):
    """Linear map from width to vocabulary, no bias; logits and losses in float32.

    Attributes:
      width: D.
      vocabulary: V.
      tied: the token table that is its kernel, transposed; None for a kernel of its own.
    """

    width: int
    vocabulary: int
    tied: Embed | None = None

    def setup(self) -> None:
        if self.tied is None:
            self.kernel = self.param("kernel", nn.initializers.lecun_normal(), (self.width, self.vocabulary))
        else:
            self.kernel = self.tied.as_head()

    def __call__(self, hidden: Float[Array, "*any D"]) -> Float[Array, "*any V"]:
        return jnp.matmul(hidden, self.kernel.astype(hidden.dtype), preferred_element_type=jnp.float32)

    def score(self, hidden: Float[Array, "B T D"], labels: Int[Array, "B T"]) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
        """Cross entropy of `labels` in nats and whether each is the most likely token, without full logits."""
        batch, length = labels.shape
        return cross_entropy(hidden, self.kernel, labels, block_length(batch // batch_parts(batch), length))
