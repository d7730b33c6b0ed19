"""Orbax checkpoints, and how one model's weights seed another's."""

from memjax.checkpoints.manager import CheckpointError, Checkpoints, load_params
from memjax.checkpoints.transplant import transplant

__all__ = ["CheckpointError", "Checkpoints", "load_params", "transplant"]
