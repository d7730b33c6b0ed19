"""Losses on a few held-out sequences, for curves while training."""

from collections.abc import Mapping
from typing import Any

import jax

from memjax.config import Evaluator
from memjax.evaluation.evaluators.held_out import BASE, held_out, without_memory
from memjax.models import build
from memjax.objectives import is_measured
from memjax.training.compiled_steps import jit_evaluation_step
from memjax.training.init_state import Run
from memjax.training.loop import Evaluate, mean_metrics
from memjax.training.optimizer import Tree

BATCH = 64
"""Sequences in a batch, at most."""


def open_validation(
    run: Run, name: str, settings: Evaluator, base: bool = False
) -> Evaluate | None:
    """Return a function that evaluates every objective of the stage.

    Args:
      run: the run.
      name: the stage.
      settings: the evaluator's entry.
      base: evaluates next tokens without memories instead (`without_memory`).
    """
    stage = run.config.stages[name]
    module = build(run.config, stage)
    # Held-out sequences have no attributions to compare an estimate with.
    objectives = tuple(sorted(filter(is_measured, stage.objectives)))
    labels = dict(zip(objectives, objectives, strict=True))
    if base:
        module, labels = without_memory(module, stage), {"next_token": BASE}
    if module is None or not objectives:
        return None
    evaluation_step = jit_evaluation_step(stage, run.mesh, module, tuple(labels), run.ids)
    examples = min(settings.examples, len(run.data.validation))

    def evaluate(params: Tree, found: Mapping[str, Any]) -> dict[str, float]:
        with jax.set_mesh(run.mesh):
            batches = held_out(run, examples, min(examples, BATCH))
            sums = [jax.device_get(evaluation_step(params, batch)) for batch in batches]
        values: dict[str, float] = {}
        for objective, label in labels.items():
            values |= mean_metrics(label, [one[objective] for one in sums])
        return values

    return evaluate
