"""A stack of identical pre-norm blocks, Transformer or Mixer, scanned so that compile time does not grow with depth.

Shapes: B batch, T position, D width.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Backbone as BackboneConfig
from memjax.layers.attention import Attention
from memjax.layers.mixer import TokenMixer
from memjax.layers.mlp import MLP
from memjax.layers.norm import make_norm


class Block(nn.Module):
    """x + mix(norm(x)), then x + mlp(norm(x))."""

    config: BackboneConfig
    length: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, positions: jax.Array, valid: jax.Array) -> tuple[jax.Array, None]:
        normed = make_norm(self.config.norm, self.dtype, "mix_norm")(x)
        if self.config.kind == "mixer":
            x = x + TokenMixer(self.config, self.length, self.dtype, name="mix")(normed, valid)
        else:
            x = x + Attention(self.config, self.dtype, name="mix")(normed, positions, valid)
        normed = make_norm(self.config.norm, self.dtype, "mlp_norm")(x)
        return x + MLP(self.config, self.dtype, name="mlp")(normed), None


class Backbone(nn.Module):
    """[B, T, D] to [B, T, D], causal. Block parameters are stacked on a leading layer axis.

    Attributes:
      config: kind, width, depth and heads.
      length: T the stack is built for; a mixer accepts no other.
      dtype: what matrix products compute in.
      remat: name of a policy of `jax.checkpoint_policies` for what a block keeps for the backward pass, or `none` for all.
    """

    config: BackboneConfig
    length: int
    dtype: jnp.dtype = jnp.float32
    remat: str = "none"

    @nn.compact
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
        block = Block
        if self.remat != "none":
            block = nn.remat(Block, policy=getattr(jax.checkpoint_policies, self.remat), prevent_cse=False)
        stack = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.config.layers,
        )
        x, _ = stack(self.config, self.length, self.dtype, name="blocks")(x.astype(self.dtype), positions, valid)
        return make_norm(self.config.norm, self.dtype, "norm")(x) if self.config.final_norm else x
