"""Text from a model, token by token: one interface for every family that predicts the next
token.
"""

from memjax.inference.generator import Generator
from memjax.inference.programs import DecodeState
from memjax.inference.sampling import GenerationError, Sampling
from memjax.inference.trained_model import TrainedModel, load

__all__ = [
    "DecodeState",
    "GenerationError",
    "Generator",
    "Sampling",
    "TrainedModel",
    "load",
]
