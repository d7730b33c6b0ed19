"""A stack of identical pre-norm blocks, scanned so that compile time does not grow with depth.

Shapes: B batch, T position, D width; N layer, K running sum, H head, E head width of a repeat mixer's state; G key and value head.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import REPEATS
from memjax.config import Backbone as BackboneConfig
from memjax.layers.attention import Attention, KeyValues
from memjax.layers.mixer import TokenMixer
from memjax.layers.mlp import MLP
from memjax.layers.norm import make_norm
from memjax.layers.repeat import RepeatMixer, initial_state
from memjax.sharding import constrain


class Block(nn.Module):
    """x + mix(norm(x)), then x + mlp(norm(x)); a repeat mixer's block has the MLP first."""

    config: BackboneConfig
    length: int
    dtype: jnp.dtype
    dense_gradient: bool = False
    attention: str = "auto"

    def setup(self) -> None:
        config, dtype = self.config, self.dtype
        self.mix_norm = make_norm(config, dtype, "mix_norm")
        if config.kind in REPEATS:
            self.mix = RepeatMixer(config, self.length, dtype)
        elif config.kind == "mixer":
            self.mix = TokenMixer(config, self.length, dtype, self.dense_gradient)
        else:
            self.mix = Attention(config, dtype, self.attention)
        self.mlp_norm = make_norm(config, dtype, "mlp_norm")
        self.mlp = MLP(config, dtype)

    def __call__(self, x: jax.Array, positions: jax.Array, valid: jax.Array) -> tuple[jax.Array, None]:
        x = constrain(x, "batch", None, None)
        if isinstance(self.mix, RepeatMixer):
            x = x + self.mlp(self.mlp_norm(x))
            return x + self.mix(self.mix_norm(x), valid), None
        normed = self.mix_norm(x)
        x = x + (self.mix(normed, positions, valid) if isinstance(self.mix, Attention) else self.mix(normed, valid))
        return x + self.mlp(self.mlp_norm(x)), None

    def step(self, x: jax.Array, state: jax.Array, position: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        """One position of a repeat mixer's block, [B, D], and the state after it."""
        x = x + self.mlp(self.mlp_norm(x))
        mixed, state = self.mix.step(self.mix_norm(x), state, position)
        return x + mixed, state

    def read(self, x: jax.Array, positions: jax.Array, valid: jax.Array) -> tuple[jax.Array, KeyValues]:
        """`__call__` of an attention block, and what later positions would read."""
        x = constrain(x, "batch", None, None)
        mixed, cache = self.mix.read(self.mix_norm(x), positions, valid)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), cache

    def cached_step(self, x: jax.Array, *args: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """One position of an attention block, [B, 1, D], and its key and value; arguments as in `Attention.cached_step`."""
        x = constrain(x, "batch", None, None)
        mixed, own = self.mix.cached_step(self.mix_norm(x), *args)
        x = x + mixed
        return x + self.mlp(self.mlp_norm(x)), own


class Backbone(nn.Module):
    """[B, T, D] to [B, T, D], causal unless `config.causal` is False. Block parameters are stacked on a leading layer axis.

    A stack of repeat mixers also runs one position at a time (`initial_state`, `step`), with a state that does not grow with T. One of
    attention does so from the keys and values of earlier positions (`read`, `cached_step`).

    Attributes:
      config: kind, width, depth and heads.
      length: T the stack is built for; a mixer accepts no other.
      dtype: what matrix products compute in.
      remat: name of a policy of `jax.checkpoint_policies` for what a block keeps for the backward pass, or `none` for all.
      dense_gradient: the dead triangle of mixing weights gets the gradient it would have if it were not cut.
      attention: how attention is computed, one of ATTENTIONS in memjax/config/settings.py.
    """

    config: BackboneConfig
    length: int
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"
    dense_gradient: bool = False
    attention: str = "auto"

    def setup(self) -> None:
        config = self.config
        block = Block
        if self.remat != "none":
            block = nn.remat(Block, policy=getattr(jax.checkpoint_policies, self.remat), prevent_cse=False)
        over_layers = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": config.layers}
        stack = nn.scan(
            block,
            methods={
                "__call__": over_layers | {"in_axes": nn.broadcast},
                "step": over_layers | {"in_axes": (0, nn.broadcast)},
                "read": over_layers | {"in_axes": nn.broadcast},
                "cached_step": over_layers | {"in_axes": (0, *(nn.broadcast,) * 4)},
            },
        )
        self.blocks = stack(config, self.length, self.dtype, self.dense_gradient, self.attention)
        if config.final_norm:
            self.norm = make_norm(config, self.dtype, "norm")

    def __call__(
        self,
        x: Float[Array, "B T D"],
        positions: Int[Array, "B T"] | None = None,
        valid: Bool[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"]:
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        if valid is None:
            valid = jnp.ones(x.shape[:2], bool)
        # What blocks add up is float32 whatever they compute in, so that a small term is not lost in a large sum.
        x, _ = self.blocks(x.astype(jnp.float32), positions, valid)
        return self._finish(x)

    def read(
        self, x: Float[Array, "B T D"], positions: Int[Array, "B T"], valid: Bool[Array, "B T"]
    ) -> tuple[Float[Array, "B T D"], KeyValues]:
        """`__call__` of a transformer, and the keys and values [N, B, G, T, E] that later positions read.

        Raises:
          ValueError: the stack is of another kind.
        """
        self._require_attention()
        x, cache = self.blocks.read(x.astype(jnp.float32), positions, valid)
        return self._finish(x), cache

    def cached_step(
        self,
        x: Float[Array, "B D"],
        cache: KeyValues,
        positions: Int[Array, " B"],
        at: Int[Array, " B"],
        valid: Bool[Array, "B T"],
    ) -> tuple[Float[Array, "B D"], KeyValues]:
        """What a transformer's `__call__` gives at one position of each row, which need not be the same in all rows.

        Args:
          x: input at the position.
          cache: keys and values of T positions, from `read` (padded to T) or the step before.
          positions: rotary positions, as `__call__` takes them.
          at: the position's place in the cache; those before it are read. Of a row with at >= T nothing is kept, and its output
            means nothing.
          valid: False where a place before `at` holds none that is to be read.

        Raises:
          ValueError: the stack is of another kind.
        """
        self._require_attention()
        readable = valid & (jnp.arange(valid.shape[1]) < at[:, None])
        layers, end = jnp.arange(self.config.layers), jnp.minimum(jnp.max(at), valid.shape[1])
        x, new = self.blocks.cached_step(x[:, None].astype(jnp.float32), layers, cache, positions[:, None], readable, end)
        # Layers read the cache as it was and all write at once: written layer by layer it would be copied.
        rows = jnp.arange(x.shape[0])
        cache = KeyValues(
            *(old.at[:, rows, :, at].set(jnp.moveaxis(y, 1, 0), mode="drop") for old, y in zip(cache, new, strict=True))
        )
        cache = KeyValues(*(constrain(y, None, "batch", "tensor", None, None) for y in cache))
        return self._finish(x)[:, 0], cache

    def _finish(self, x: jax.Array) -> jax.Array:
        return self.norm(x) if self.config.final_norm else x.astype(self.dtype)

    @nn.nowrap
    def initial_state(self, batch: int) -> Float[Array, "N B K H E"]:
        """What a stack of repeat mixers carries before the first position.

        Raises:
          ValueError: the stack is of another kind, of which a position reads all earlier ones.
        """
        self._require_state()
        state = initial_state(self.config, batch)
        return jnp.broadcast_to(state, (self.config.layers, *state.shape))

    def step(
        self, x: Float[Array, "B D"], state: Float[Array, "N B K H E"], position: Int[Array, "#B"] | Int[Array, ""] | int
    ) -> tuple[Float[Array, "B D"], Float[Array, "N B K H E"]]:
        """What `__call__` gives at `position`, from the input there and the state after the position before.

        Args:
          x: input at the position.
          state: from `initial_state` or the step before. A row that begins with padding can start later: at its first token's
            position, from the initial state.
          position: 0 to T - 1, one for all rows or one for each.

        Raises:
          ValueError: as `initial_state`.
        """
        self._require_state()
        x, state = self.blocks.step(x.astype(jnp.float32), state, position)
        return self._finish(x), state

    @nn.nowrap
    def _require_state(self) -> None:
        if self.config.kind not in REPEATS:
            raise ValueError(f"kind={self.config.kind!r} has no state of constant size to step with; {', '.join(REPEATS)} have")

    @nn.nowrap
    def _require_attention(self) -> None:
        if self.config.kind != "transformer" or not self.config.causal:
            kind = self.config.kind if self.config.causal else f"{self.config.kind} with causal=False"
            raise ValueError(f"a {kind} has no keys and values to step with; a causal transformer has")
