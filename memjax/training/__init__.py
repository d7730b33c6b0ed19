"""Training of one stage: initial state, optimizer, step and loop."""

from memjax.training.init_state import Run
from memjax.training.loop import Evaluator, NonFiniteError, Preempted, train_stage
from memjax.training.optimizer import make_optimizer
from memjax.training.step import Metrics, TrainState, train_step

__all__ = [
    "Evaluator",
    "Metrics",
    "NonFiniteError",
    "Preempted",
    "Run",
    "TrainState",
    "make_optimizer",
    "train_stage",
    "train_step",
]
