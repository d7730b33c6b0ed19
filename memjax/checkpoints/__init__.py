"""Orbax checkpoints, and how one model's weights seed another's."""

from memjax.checkpoints.manager import CheckpointError, Checkpoints, load_params
from memjax.checkpoints.transplant import parts_of, transplant

__all__ = ["CheckpointError", "Checkpoints", "load_params", "parts_of", "transplant"]
