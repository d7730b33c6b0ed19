"""Model families, one file each, as Flax Linen modules; `build` makes the one a stage names."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from memjax.config import Config, Stage
from memjax.models.autoencoder import Autoencoder, unroll
from memjax.models.causal_lm import CausalLM
from memjax.models.encoder import Encoder
from memjax.models.entropy_regressor import EntropyRegressor
from memjax.models.memory_model import EMPTY, PREDICT, RETAIN, MemoryModel, earlier_chunks
from memjax.models.oracle import Oracle
from memjax.models.recurrent_memory import RecurrentMemory
from memjax.models.retrieval import Ranker, Retriever

FAMILIES: Mapping[str, type[nn.Module]] = {
    "autoencoder": Autoencoder,
    "memory_model": MemoryModel,
    "causal_lm": CausalLM,
    "oracle": Oracle,
    "recurrent_memory": RecurrentMemory,
    "retriever": Retriever,
    "ranker": Ranker,
    "entropy_regressor": EntropyRegressor,
}
"""What `config.stages.NAME.family` can be."""


def build(config: Config, stage: Stage) -> nn.Module:
    """The module that `stage` trains."""
    model, vocabulary = config.model, config.data.vocabulary
    match stage.family:
        case "memory_model":
            return MemoryModel(model, config.chunks, vocabulary, stage.memory)
        case "recurrent_memory":
            return RecurrentMemory(model, config.chunks, vocabulary)
        case "causal_lm" | "entropy_regressor":
            return FAMILIES[stage.family](model, config.data.row_tokens, vocabulary)
        case "ranker":
            return Ranker(model, config.chunks, vocabulary)
    return FAMILIES[stage.family](model, vocabulary)


def example(module: nn.Module, config: Config) -> jax.Array:
    """The smallest tokens `module.init` accepts."""
    length = config.model.chunk_length
    if isinstance(module, (MemoryModel, RecurrentMemory, Ranker)):
        return jnp.zeros((1, config.chunks, length), jnp.int32)
    row = isinstance(module, (CausalLM, EntropyRegressor))
    return jnp.zeros((1, config.data.row_tokens if row else length), jnp.int32)


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
    "Retriever",
    "build",
    "earlier_chunks",
    "example",
    "unroll",
]
