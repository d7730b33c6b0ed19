"""Orbax checkpoints, and how one model's weights seed another's."""

from memjax.checkpoints.manager import Checkpoints
from memjax.checkpoints.reading import CheckpointError, load_params
from memjax.checkpoints.schedule import Schedule
from memjax.checkpoints.transplant import parts_of, paths_of, transplant

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "Schedule",
    "load_params",
    "parts_of",
    "paths_of",
    "transplant",
]
