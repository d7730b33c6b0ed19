"""Families of models, one file per family, as Flax Linen modules."""

import flax.linen as nn
import jax

from memjax.config import Config, Stage
from memjax.models.autoencoder import Autoencoder, unroll
from memjax.models.causal_lm import CausalLM
from memjax.models.checks import check
from memjax.models.encoder import Encoder
from memjax.models.entropy_regressor import EntropyRegressor
from memjax.models.memory_model import MemoryModel
from memjax.models.oracle import Oracle
from memjax.models.ranker import Ranker
from memjax.models.recurrent_memory import RecurrentMemory
from memjax.models.registry import FAMILIES, can, families_that, find
from memjax.models.request import EMPTY, PREDICT, RETAIN, Request
from memjax.models.retriever import Retriever
from memjax.models.slots import earlier_chunks


def build(config: Config, stage: Stage) -> nn.Module:
    """Return the module that `stage` trains."""
    return find(stage.family).build(config, stage)


def example(module: nn.Module, config: Config) -> jax.Array:
    """Return the smallest tokens that `module.init` accepts."""
    return find(module).example(config)


__all__ = [
    "EMPTY",
    "FAMILIES",
    "PREDICT",
    "RETAIN",
    "Autoencoder",
    "CausalLM",
    "Encoder",
    "EntropyRegressor",
    "MemoryModel",
    "Oracle",
    "Ranker",
    "RecurrentMemory",
    "Request",
    "Retriever",
    "build",
    "can",
    "check",
    "earlier_chunks",
    "example",
    "families_that",
    "find",
    "unroll",
]
