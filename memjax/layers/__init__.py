"""Layers of neural networks; none of them depends on memories."""

from memjax.layers.attention import Attention
from memjax.layers.backbone import MIXERS, Backbone, Block, make_backbone
from memjax.layers.embed import Embed
from memjax.layers.head import Head, cross_entropy
from memjax.layers.linear import Linear
from memjax.layers.mixer import TokenMixer, mix_tokens
from memjax.layers.mlp import MLP
from memjax.layers.repeat import RepeatMixer
from memjax.layers.rotary import rotate

__all__ = [
    "MIXERS",
    "MLP",
    "Attention",
    "Backbone",
    "Block",
    "Embed",
    "Head",
    "Linear",
    "RepeatMixer",
    "TokenMixer",
    "cross_entropy",
    "make_backbone",
    "mix_tokens",
    "rotate",
]
