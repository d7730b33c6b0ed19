"""A stack of identical pre-norm blocks, scanned so that compile time does not grow with depth.

Shapes: B batch, T position, D width, N layer; state of a repeat mixer: K running sum, H head, E
head width; G key and value head.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import REPEATS, ConfigError, Model
from memjax.config import Backbone as BackboneConfig
from memjax.layers.attend import PrefixCache
from memjax.layers.attention import Attention, KeyValues, Positions
from memjax.layers.mixer import TokenMixer
from memjax.layers.mlp import MLP
from memjax.layers.norm import make_norm
from memjax.layers.repeat import RepeatMixer, initial_state
from memjax.layers.rotary import TextPositions
from memjax.layers.shared_prefix import SharedPrefix
from memjax.sharding import constrain


class Block(nn.Module):
    """Computes x + mix(norm(x)), then x + mlp(norm(x)).

    A block of a repeat mixer runs the MLP first.
    """

    config: BackboneConfig
    length: int
    dtype: jnp.dtype
    dense_gradient: bool = False
    attention: str = "auto"
    vectors: int = 1

    def setup(self) -> None:
        self.mix_norm = make_norm(self.config, self.dtype, "mix_norm")
        self.mix = MIXERS[self.config.kind].build(self)
        self.mlp_norm = make_norm(self.config, self.dtype, "mlp_norm")
        self.mlp = MLP(self.config, self.dtype)

    def __call__(
        self, x: jax.Array, positions: Positions, valid: jax.Array | SharedPrefix
    ) -> tuple[jax.Array, None]:
        mlp_first = self.config.kind in REPEATS
        x = constrain(x, "batch", None, None)
        x = self._mix_channels(x) if mlp_first else x
        x = x + self.mix(self.mix_norm(x), positions=positions, valid=valid)
        return x if mlp_first else self._mix_channels(x), None

    def step(
        self, x: jax.Array, state: jax.Array, position: jax.Array | int
    ) -> tuple[jax.Array, jax.Array]:
        """Compute one position [B, D] of a repeat mixer's block, and the state after it."""
        x = self._mix_channels(x)
        mixed, state = self.mix.step(self.mix_norm(x), state, position)
        return x + mixed, state

    def read(
        self, x: jax.Array, positions: Positions, valid: jax.Array | SharedPrefix
    ) -> tuple[jax.Array, KeyValues]:
        """Compute `__call__` of an attention block, and return its keys and values."""
        x = constrain(x, "batch", None, None)
        mixed, cache = self.mix.read(self.mix_norm(x), positions, valid)
        return self._mix_channels(x + mixed), cache

    def read_after(
        self, x: jax.Array, positions: Positions, readable: jax.Array, before: KeyValues
    ) -> tuple[jax.Array, KeyValues]:
        """Compute `read` of positions that also read keys and values of this layer."""
        mixed, cache = self.mix.read_masked(self.mix_norm(x), positions, readable, before)
        return self._mix_channels(x + mixed), cache

    def read_layers(
        self, x: jax.Array, positions: Positions, readable: jax.Array, rows: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Compute positions that also read rows of this layer; return the output twice."""
        given = self.mix_norm(jnp.concatenate([rows.astype(x.dtype), x], axis=1))
        mixed, _ = self.mix.read_masked(given, positions, readable, None, rows.shape[1])
        x = self._mix_channels(x + mixed)
        return x, x

    def cached_step(
        self, x: jax.Array, *args: Any
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Compute one position [B, 1, D] of an attention block, and return its key and value.

        Arguments are those of `Attention.cached_step`.
        """
        x = constrain(x, "batch", None, None)
        mixed, own = self.mix.cached_step(self.mix_norm(x), *args)
        return self._mix_channels(x + mixed), own

    def _mix_channels(self, x: jax.Array) -> jax.Array:
        return x + self.mlp(self.mlp_norm(x))


class Mixing(NamedTuple):
    """A kind of mixing over positions."""

    build: Callable[[Block], Any]
    """The module of a block, from (x, positions=, valid=) to the mixed sequence."""
    products: Callable[[BackboneConfig], int] = lambda config: 0
    """Multiplications per channel and layer of a token with each position that it reads."""


MIXERS: Mapping[str, Mixing] = {
    "transformer": Mixing(
        lambda block: Attention(block.config, block.dtype, block.attention, block.vectors),
        lambda config: 2,
    ),
    "mixer": Mixing(
        lambda block: TokenMixer(block.config, block.length, block.dtype, block.dense_gradient),
        lambda config: config.channel_kernel,
    ),
    **dict.fromkeys(
        REPEATS, Mixing(lambda block: RepeatMixer(block.config, block.length, block.dtype))
    ),
}
"""The kinds of stacks, the values of `kind`.

To add a kind, write one file with its module, and add one line here.
"""


MOST_UNROLLED = 4
"""Layers up to which a stack is compiled without a loop over them."""


class Backbone(nn.Module):
    """A stack from [B, T, D] to [B, T, D], causal unless `config.causal` is False.

    Block parameters are stacked on a leading layer axis. A stack of repeat mixers also runs one
    position at a time (`initial_state`, `step`) with a state of constant size. A causal transformer
    does so with a cache of the keys and values of earlier positions (`read`, `cached_step`).

    Attributes:
      config: kind, width, depth and heads.
      length: T that the stack is built for; a mixer accepts no other.
      dtype: dtype of matrix products.
      remat: name of a policy in `jax.checkpoint_policies` for the activations that a block keeps
        for the backward pass, or `none` to keep all.
      dense_gradient: give the masked triangle of mixing weights the gradient that it would have
        without the mask.
      attention: implementation of attention, one of ATTENTIONS in memjax/config/choices.py.
      vectors: vectors of every memory that a decoder reads.
    """

    config: BackboneConfig
    length: int
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    dense_gradient: bool = False
    attention: str = "auto"
    vectors: int = 1

    def setup(self) -> None:
        config = self.config
        block = Block
        if self.remat != "none":
            block = nn.remat(
                Block, policy=getattr(jax.checkpoint_policies, self.remat), prevent_cse=False
            )
        over_layers = {
            "variable_axes": {"params": 0},
            "split_rngs": {"params": True},
            "length": config.layers,
            # A loop stacks what every layer keeps for the backward pass: on a CPU a fifth of a
            # step. Recomputation needs the loop, or the compiler would merge both computations.
            "unroll": config.layers if self._unrolled() else 1,
            # A second trace of the block, which changes only how parameters are drawn.
            "check_constancy_invariants": self.is_initializing(),
        }
        stack = nn.scan(
            block,
            methods={
                "__call__": over_layers | {"in_axes": nn.broadcast},
                "step": over_layers | {"in_axes": (0, nn.broadcast)},
                "read": over_layers | {"in_axes": nn.broadcast},
                "read_after": over_layers | {"in_axes": (nn.broadcast, nn.broadcast, 0)},
                "read_layers": over_layers | {"in_axes": (nn.broadcast, nn.broadcast, 0)},
                "cached_step": over_layers | {"in_axes": (0, *(nn.broadcast,) * 6)},
            },
        )
        how = self.dense_gradient, self.attention, self.vectors
        self.blocks = stack(config, self.length, self.dtype, *how)
        if config.final_norm:
            self.norm = make_norm(config, self.dtype, "norm")

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Positions | None = None,
        valid: Bool[Array, "B T"] | Bool[Array, "#B T T"] | SharedPrefix | None = None,
    ) -> Float[Array, "B T D"]:
        """Compute all positions at once.

        Args:
          x: the input.
          positions: rotary positions, or places in a text. By default they count valid positions,
            so that padding on the left does not shift them.
          valid: False at padding; None where there is none. Or which positions each one reads, or
            the layout of chunks that share a prefix: both need positions.
        """
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
            if valid is not None and not isinstance(valid, SharedPrefix):
                positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
        if valid is None:
            valid = jnp.ones(x.shape[:2], bool)
        # The residual stream is float32 in every dtype, so that small terms are not lost in large
        # sums.
        x, _ = self.blocks(x.astype(jnp.float32), positions, valid)
        return self._finish(x)

    def read(
        self,
        x: Float[Array, "B T D"],
        positions: Positions,
        valid: Bool[Array, "B T"] | SharedPrefix,
    ) -> tuple[Float[Array, "B T D"], KeyValues]:
        """Compute `__call__` of a transformer, and return its keys and values [N, B, G, T, E].

        Raises:
          ConfigError: the stack is not a causal transformer.
        """
        self._require_attention()
        x, cache = self.blocks.read(x.astype(jnp.float32), positions, valid)
        return self._finish(x), cache

    def read_after(
        self,
        x: Float[Array, "B T D"],
        positions: Positions,
        readable: Bool[Array, "#B T S"],
        before: KeyValues,
    ) -> tuple[Float[Array, "B T D"], KeyValues]:
        """Compute `read` of positions behind keys and values of other passes.

        Args:
          x: the input.
          positions: rotary positions of x.
          readable: which of the S = P + T keys each position reads, in every layer.
          before: keys and values [N, B, G, P, E], as `read` returns them.

        Returns:
          The output, and the keys and values of x.

        Raises:
          ConfigError: as `read`.
        """
        self._require_attention()
        x, cache = self.blocks.read_after(x.astype(jnp.float32), positions, readable, before)
        return self._finish(x), cache

    def read_layers(
        self,
        x: Float[Array, "B T D"],
        positions: Positions,
        readable: Bool[Array, "#B T S"],
        rows: Float[Array, "N B P D"],
    ) -> tuple[Float[Array, "B T D"], Float[Array, "N B T D"]]:
        """Compute positions that read rows of every layer besides one another.

        A row is an input of its layer: it is normalised and read, and nothing of it is computed.

        Args:
          x: the input.
          positions: rotary positions of the P rows, then of x.
          readable: which of the S = P + T rows and positions each position reads.
          rows: of each layer.

        Returns:
          The output, and what leaves each layer.

        Raises:
          ConfigError: as `read`.
        """
        self._require_attention()
        x, layers = self.blocks.read_layers(x.astype(jnp.float32), positions, readable, rows)
        return self._finish(x), layers

    def cached_step(
        self,
        x: Float[Array, "B D"],
        cache: KeyValues,
        positions: Int[Array, " B"] | TextPositions,
        at: Int[Array, " B"],
        valid: Bool[Array, "B T"],
    ) -> tuple[Float[Array, "B D"], KeyValues]:
        """Compute a transformer's `__call__` at one position per sequence.

        Args:
          x: input at the position.
          cache: keys and values of T positions, from `read` (padded to T) or the previous step.
          positions: rotary positions, as in `__call__`.
          at: index of the position in the cache, per sequence; earlier indices are attended to. A
            sequence with at >= T is not cached, and its output is meaningless.
          valid: False at cached positions to ignore.

        Returns:
          The output, and the cache with the position's key and value.

        Raises:
          ConfigError: the stack is not a causal transformer.
        """
        readable = valid & (jnp.arange(valid.shape[1]) < at[:, None])
        return self.cached_read(x, cache, positions, at, readable)

    def cached_read(
        self,
        x: Float[Array, "B D"],
        cache: KeyValues,
        positions: Int[Array, " B"] | TextPositions,
        at: Int[Array, " B"],
        readable: Bool[Array, "B T"],
        is_entry: bool = False,
        prefix: PrefixCache | None = None,
    ) -> tuple[Float[Array, "B D"], KeyValues]:
        """Compute `cached_step` of a position that reads any cached positions.

        Args:
          x: input at the position.
          cache: as in `cached_step`.
          positions: as in `cached_step`.
          at: index in the cache where the position is written; not at T or above.
          readable: True at cached positions to attend to, besides its own.
          is_entry: whether the position is an entry of a prefix.
          prefix: read as well; each of its rows is that of as many successive sequences.
        """
        self._require_attention()
        column = jax.tree.map(lambda x: x[:, None], positions)
        layers, index = jnp.arange(self.config.layers), jnp.arange(1, readable.shape[1] + 1)
        end = jnp.max(jnp.where(readable, index, 0))
        x, new = self.blocks.cached_step(
            x[:, None].astype(jnp.float32),
            layers,
            cache,
            column,
            readable,
            end,
            jnp.full(1, is_entry),
            prefix,
        )
        # All layers read the old cache and write at once: writing layer by layer would copy it.
        rows = jnp.arange(x.shape[0])
        written = (
            old.at[:, rows, :, at].set(jnp.moveaxis(y, 1, 0), mode="drop")
            for old, y in zip(cache, new, strict=True)
        )
        cache = KeyValues(*(constrain(y, None, "batch", "tensor", None, None) for y in written))
        return self._finish(x)[:, 0], cache

    @nn.nowrap
    def _unrolled(self) -> bool:
        return self.remat == "none" and self.config.layers <= MOST_UNROLLED

    def _finish(self, x: jax.Array) -> jax.Array:
        return self.norm(x) if self.config.final_norm else x.astype(self.dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> Float[Array, "N B K H E"]:
        """Return the state of a stack of repeat mixers before the first position.

        Raises:
          ConfigError: the stack is of another kind, without a state of constant size.
        """
        self._require_state()
        return initial_state(self.config, batch)

    def step(
        self,
        x: Float[Array, "B D"],
        state: Float[Array, "N B K H E"],
        position: Int[Array, "#B"] | Int[Array, ""] | int,
    ) -> tuple[Float[Array, "B D"], Float[Array, "N B K H E"]]:
        """Compute `__call__` at one position from the state after the previous one.

        Args:
          x: input at the position.
          state: from `initial_state` or the previous step. A left-padded sequence can start later:
            at its first token's position, from the initial state.
          position: 0 to T - 1, one for all sequences or one per sequence.

        Raises:
          ConfigError: as `initial_state`.
        """
        self._require_state()
        x, state = self.blocks.step(x.astype(jnp.float32), state, position)
        return self._finish(x), state

    @nn.nowrap
    def _require_state(self) -> None:
        ConfigError.require(
            self.config.kind in REPEATS,
            f"kind={self.config.kind!r} has no state of constant size to step with; use one of"
            f" {', '.join(REPEATS)}",
        )

    @nn.nowrap
    def _require_attention(self) -> None:
        kind, causal = self.config.kind, self.config.causal
        ConfigError.require(
            kind == "transformer" and causal,
            f"a {kind if causal else f'{kind} with causal=False'} has no keys and values to step"
            " with; use a causal transformer",
        )


def make_backbone(model: Model, config: BackboneConfig, length: int, vectors: int = 1) -> Backbone:
    """Return a backbone over `length` positions, with the dtype, remat and attention of `model`.

    `vectors` is that of every memory that it reads by its place.
    """
    how = "dense_mixing_gradient" in model.compat, model.attention, vectors
    return Backbone(config, length, jnp.dtype(model.dtype), model.remat, *how)
