"""Instruments: what a model knows, and how much its memories hold."""

from memjax.instruments.accuracy import Accuracy, measure
from memjax.instruments.recall import regenerate

__all__ = ["Accuracy", "measure", "regenerate"]
