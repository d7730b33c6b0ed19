"""Model families, one file each, as Flax Linen modules; `build` makes the one a stage names."""

from flax import linen as nn

from memjax.config import Config, Stage
from memjax.models.autoencoder import Autoencoder, unroll
from memjax.models.encoder import Encoder
from memjax.models.memory_model import EMPTY, PREDICT, RETAIN, MemoryModel, earlier_chunks


def build(config: Config, stage: Stage) -> nn.Module:
    """The module that `stage` trains."""
    if stage.family == "autoencoder":
        return Autoencoder(config.model, config.data.vocabulary)
    return MemoryModel(config.model, config.chunks, config.data.vocabulary, stage.memory)


__all__ = ["EMPTY", "PREDICT", "RETAIN", "Autoencoder", "Encoder", "MemoryModel", "build", "earlier_chunks", "unroll"]
