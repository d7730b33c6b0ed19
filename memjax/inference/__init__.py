"""Trained models in use: text to memories and back, generation, and scores of texts.

Every family that predicts the next token generates and scores through one interface.
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
