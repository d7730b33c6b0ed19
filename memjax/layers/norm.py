"""Normalisation before each sub-layer and after a stack."""

import flax.linen as nn
import jax.numpy as jnp


def make_norm(kind: str, dtype: jnp.dtype, name: str) -> nn.Module:
    """RMSNorm (`rms`, epsilon 1e-6, gain) or LayerNorm (`layer`, epsilon 1e-5, gain and bias); statistics in float32."""
    if kind == "rms":
        return nn.RMSNorm(epsilon=1e-6, dtype=dtype, name=name)
    return nn.LayerNorm(epsilon=1e-5, dtype=dtype, name=name)
