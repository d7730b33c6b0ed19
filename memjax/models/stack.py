"""The backbone of a part of a model."""

import jax.numpy as jnp

from memjax.config import Backbone as BackboneConfig
from memjax.config import Model
from memjax.layers import Backbone


def make_stack(model: Model, backbone: BackboneConfig, length: int) -> Backbone:
    """`backbone` over `length` positions, as `model` says: dtype, remat, attention, and how the dead half of mixing weights counts."""
    dense = "dense_mixing_gradient" in model.compat
    return Backbone(backbone, length, jnp.dtype(model.dtype), model.remat, dense, model.attention)
