"""Text from a model, token by token: one interface for every family that predicts the next token."""

from memjax.inference.errors import GenerationError
from memjax.inference.generator import Generator, open_generator
from memjax.inference.given import Mark
from memjax.inference.programs import State
from memjax.inference.sampling import Sampling

__all__ = ["GenerationError", "Generator", "Mark", "Sampling", "State", "open_generator"]
