"""Training: optimizer, step, the loop of a stage, and a whole run."""

from memjax.training.curriculum import WorkdirError, run_experiment
from memjax.training.loop import Interrupted, NonFiniteError, train_stage
from memjax.training.optimizer import make_optimizer
from memjax.training.progress import Reporter
from memjax.training.start import Run
from memjax.training.step import Metrics, TrainState, train_step

__all__ = [
    "Interrupted",
    "Metrics",
    "NonFiniteError",
    "Reporter",
    "Run",
    "TrainState",
    "WorkdirError",
    "make_optimizer",
    "run_experiment",
    "train_stage",
    "train_step",
]
