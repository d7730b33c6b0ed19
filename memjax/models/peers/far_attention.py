"""Attention that also reads stored keys and values, and stacks of it.

Keys are stored before their rotation. Local keys are rotated by their positions as usual, and
stored ones are read as if all stood at one distance, or in a row before the local ones.

Shapes: N sequence, T position, P stored row, S = P + T, D width, H head, G key and value head, E
head width, J layer.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Model
from memjax.layers import MLP, Attention, Backbone, Block, rotate
from memjax.layers.attend import attend
from memjax.layers.norm import make_norm
from memjax.models.peers.peer import MASKED
from memjax.sharding import constrain


class Far(NamedTuple):
    """Stored rows; those of a stack have a leading layer axis."""

    key: Float[Array, "*J N P G E"]
    value: Float[Array, "*J N P G E"]
    there: Bool[Array, "*J N P"]
    """False at rows that are empty, which nothing reads."""
    block: Int[Array, "*J N P"] | None = None
    """The number of each row's block; None where rows have none."""


class Local(NamedTuple):
    """Results of a layer at its own positions; those of a stack have a leading layer axis."""

    state: Float[Array, "*J N T D"]
    """The output of the block."""
    key: Float[Array, "*J N T G E"]
    """Keys before their rotation."""
    value: Float[Array, "*J N T G E"]
    received: Float[Array, "*J N T"]
    """The mean score of a position's key with its own query and real ones behind it."""
    weights: Float[Array, "*J N T S"]
    """Weights of all keys, stored ones first, as means over heads."""


class FarAttention(Attention):
    """Causal attention over real positions and stored rows.

    A subclass chooses, by `chosen`, which stored rows a query reads; here they are all.

    Attributes:
      gated: local and stored keys have a softmax each, and a learned number for every head weighs
        both. False is one softmax over all.
      distance: positions between a query and every stored row. None leaves stored rows where their
        keys have been rotated to.
    """

    gated: bool = False
    distance: int | None = 0

    def setup(self) -> None:
        super().setup()
        if self.gated:
            self.far_gate = self.param("far_gate", nn.initializers.zeros, (self.config.heads,))

    def chosen(
        self,
        query: Float[Array, "N T H E"],
        key: Float[Array, "N P H E"],
        far: Far,
        valid: Bool[Array, "N T"],
    ) -> Bool[Array, "N #H #T P"]:
        """Return which stored rows each query reads.

        Args:
          query: queries before their rotation.
          key: stored keys, repeated for every head.
          far: the stored rows.
          valid: False at padding. A choice depends on no later position.
        """
        return far.there[:, None, None]

    def read_far(
        self, x: Float[Array, "N T D"], valid: Bool[Array, "N T"], far: Far | None
    ) -> tuple[Float[Array, "N T D"], Local]:
        """Compute positions that read one another and stored rows.

        Args:
          x: the input.
          valid: False at padding.
          far: stored rows; None for none.

        Returns:
          The output, and what belongs to the positions, with the input as state.
        """
        length = x.shape[1]
        positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
        readable = (jnp.tri(length, dtype=bool) & valid[:, None]) | jnp.eye(length, dtype=bool)
        unturned, none = jnp.zeros_like(positions), jnp.zeros(length, bool)
        query, key, value = self._project(x, unturned, none, readable.sum(axis=-1))
        turned, near = self._turn(query, positions), self._turn(key, positions)
        own = self._scores(turned, self._by_head(near))
        asks = (readable & valid[..., None])[:, None]
        received = jnp.where(asks, own, 0).sum(axis=(1, 2)) / jnp.maximum(asks.sum(axis=(1, 2)), 1)
        own = jnp.where(readable[:, None], own, MASKED)
        if far is None or not far.key.shape[1]:
            weights = nn.softmax(own, axis=-1)
            mixed = attend(turned, near, value, valid, True, self.attention)
        else:
            far_key, far_value = self._by_head(far.key), self._by_head(far.value)
            read = self.chosen(query, far_key, far, valid) & far.there[:, None, None]
            asked = turned
            if self.distance is not None:
                asked = self._turn(query, jnp.full_like(positions, self.distance))
            other = jnp.where(read, self._scores(asked, far_key), MASKED)
            weights = self._weigh(other, own, far.there.any(axis=1))
            values = jnp.concatenate([far_value.astype(value.dtype), self._by_head(value)], axis=1)
            mixed = jnp.einsum("nhts,nshe->nthe", weights.astype(value.dtype), values)
        local = Local(x, key, value, received, weights.mean(axis=1))
        return self._finish(x, mixed, unturned), local

    def _weigh(
        self, far: Float[Array, "N H T P"], own: Float[Array, "N H T T"], some: Bool[Array, " N"]
    ) -> Float[Array, "N H T S"]:
        if not self.gated:
            return nn.softmax(jnp.concatenate([far, own], axis=-1), axis=-1)
        gate = nn.sigmoid(self.far_gate)[:, None, None] * some[:, None, None, None]
        parts = gate * nn.softmax(far, axis=-1), (1 - gate) * nn.softmax(own, axis=-1)
        return jnp.concatenate(parts, axis=-1)

    def _turn(
        self, x: Float[Array, "N T H E"], positions: Int[Array, "N T"]
    ) -> Float[Array, "N T H E"]:
        return rotate(x, positions, self.config.rope_theta, self.config.rope_scaling)

    def _by_head(self, x: Float[Array, "N S G E"]) -> Float[Array, "N S H E"]:
        return jnp.repeat(x, self.config.heads // x.shape[2], axis=2)

    def _scores(
        self, query: Float[Array, "N T H E"], key: Float[Array, "N S H E"]
    ) -> Float[Array, "N H T S"]:
        key, scale = key.astype(query.dtype), 1 / math.sqrt(query.shape[-1])
        return scale * jnp.einsum("nthe,nshe->nhts", query, key, preferred_element_type=jnp.float32)


class FarBlock(Block):
    """A block whose attention also reads stored rows.

    Attributes:
      make: returns the attention, a FarAttention, from the stack's settings, the dtype and the
        implementation.
    """

    make: Callable[..., FarAttention] = FarAttention

    def setup(self) -> None:
        self.mix_norm = make_norm(self.config, self.dtype, "mix_norm")
        self.mix = self.make(self.config, self.dtype, self.attention)
        self.mlp_norm = make_norm(self.config, self.dtype, "mlp_norm")
        self.mlp = MLP(self.config, self.dtype)

    def read_far(
        self, x: Float[Array, "N T D"], valid: Bool[Array, "N T"], far: Far | None = None
    ) -> tuple[Float[Array, "N T D"], Local]:
        """Compute positions that also read stored rows of this layer."""
        x = constrain(x, "batch", None, None)
        mixed, local = self.mix.read_far(self.mix_norm(x), valid, far)
        x = self._mix_channels(x + mixed)
        return x, local._replace(state=x)


class FarBackbone(Backbone):
    """A stack whose layers also read stored rows, with the parameters of a `Backbone`.

    Of the methods of `Backbone`, it has `__call__` alone.

    Attributes:
      make: as in `FarBlock`.
    """

    make: Callable[..., FarAttention] = FarAttention

    def setup(self) -> None:
        block: Any = FarBlock
        if self.remat != "none":
            policy = getattr(jax.checkpoint_policies, self.remat)
            methods = ("__call__", "read_far")
            block = nn.remat(block, methods=methods, policy=policy, prevent_cse=False)
        over_layers = {
            "variable_axes": {"params": 0},
            "split_rngs": {"params": True},
            "length": self.config.layers,
            "unroll": self.config.layers if self._unrolled() else 1,
            "check_constancy_invariants": self.is_initializing(),
        }
        stack = nn.scan(
            block,
            methods={
                "__call__": over_layers | {"in_axes": nn.broadcast},
                "read_far": over_layers | {"in_axes": (nn.broadcast, 0)},
            },
        )
        how = {"attention": self.attention, "make": self.make}
        self.blocks = stack(self.config, self.length, self.dtype, **how)
        if self.config.final_norm:
            self.norm = make_norm(self.config, self.dtype, "norm")

    def read_far(
        self, x: Float[Array, "N T D"], valid: Bool[Array, "N T"], far: Far | None = None
    ) -> tuple[Float[Array, "N T D"], Local]:
        """Return the output, and what every layer computes of its positions."""
        x, local = self.blocks.read_far(x.astype(jnp.float32), valid, far)
        return self.finish(x), local

    def finish(self, x: Float[Array, "N T D"]) -> Float[Array, "N T D"]:
        """Return what leaves the last layer as the head reads it."""
        return self._finish(x)


def make_far_backbone(
    model: Model, make: Callable[..., FarAttention] = FarAttention
) -> FarBackbone:
    """Return the decoder's stack of a model, over a chunk."""
    return FarBackbone(
        model.decoder,
        model.chunk_length,
        jnp.dtype(model.dtype),
        model.remat,
        attention=model.attention,
        make=make,
    )


def highest(scores: Float[Array, "*any P"], most: int) -> Bool[Array, "*any P"]:
    """Return where the `most` highest scores are; of equal ones the first."""
    if most >= scores.shape[-1]:
        return jnp.ones(scores.shape, bool)
    scores = jax.lax.stop_gradient(scores)
    least = jax.lax.top_k(scores, most)[0][..., -1:]
    above, equal = scores > least, scores == least
    room = most - above.sum(axis=-1, keepdims=True)
    return above | (equal & (jnp.cumsum(equal, axis=-1) <= room))
