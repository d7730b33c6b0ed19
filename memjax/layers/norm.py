"""Normalisation before each sub-layer and after a stack."""

import flax.linen as nn
import jax.numpy as jnp

from memjax.config import Backbone


def make_norm(config: Backbone, dtype: jnp.dtype, name: str) -> nn.Module:
    """Return RMSNorm (`rms`, gain) or LayerNorm (`layer`, gain and bias); statistics in float32."""
    kind = nn.RMSNorm if config.norm == "rms" else nn.LayerNorm
    return kind(epsilon=config.epsilon, dtype=dtype, name=name)
