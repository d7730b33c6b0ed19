"""Free-running recall: chunks reconstructed from their memories alone, by greedy decoding."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from memjax.config import Evaluator
from memjax.evaluation.evaluators.held_out import BATCH, held_out
from memjax.evaluation.instruments.recall_curves import in_chunks
from memjax.inference.regenerate import regenerate
from memjax.models import build, can
from memjax.objectives.recall import asks_to_recall
from memjax.training.init_state import Run
from memjax.training.loop import Evaluate
from memjax.training.optimizer import Tree

PASSAGES = 6
"""Chunks that the report shows."""


def open_recall(run: Run, name: str, settings: Evaluator) -> Evaluate | None:
    """Return a function that reconstructs chunks and counts the correct ones.

    The prompt is the one that the accuracy evaluator found best, where it is evaluated first.

    Args:
      run: the run.
      name: the stage.
      settings: the evaluator's entry.
    """
    stage = run.config.stages[name]
    module: Any = build(run.config, stage)
    if not can(module, "reads_memories"):
        return None
    trained = "copy" if {"copy", "blank_copy"} & set(stage.objectives) else "plain_copy"
    if asks_to_recall(run.config, stage):
        trained = "recall"

    def evaluate(params: Tree, found: Mapping[str, Any]) -> dict[str, Any]:
        prompt = found.get("asked_to_copy_by", trained)
        pairs = []
        for batch in held_out(run, settings.examples, min(settings.examples, BATCH)):
            both = regenerate(module, params, batch, run.ids, prompt, stage.compat, run.mesh)
            pairs.append(tuple(map(np.asarray, both)))
        generated, target = (
            np.concatenate(chunks).reshape(-1, module.config.chunk_length)
            for chunks in zip(*pairs, strict=True)
        )
        right, counts, chunk, exact = in_chunks(generated == target, target != run.ids.pad, 1)
        if not chunk.any():
            return {}
        return {
            "free_running_exact_chunks": float(exact.sum() / chunk.sum()),
            "free_running_token_accuracy": float(right.sum() / counts.sum()),
            "free_running_chunks": int(chunk.sum()),
            "passages": _passages(run, generated[chunk[:, 0]], target[chunk[:, 0]]),
        }

    return evaluate


def _passages(run: Run, generated: np.ndarray, target: np.ndarray) -> list[dict[str, Any]]:
    """Return chunks that are evenly spaced over the held-out text, not chosen by their errors."""
    pieces = run.data.tokenizer.pieces
    chosen = np.linspace(0, len(target) - 1, min(PASSAGES, len(target))).astype(int)
    real = target != run.ids.pad
    pairs = [(target[i][real[i]], generated[i][real[i]]) for i in chosen]
    return [
        {
            "source": pieces(source),
            "regenerated": pieces(made),
            "correct": (source == made).tolist(),
        }
        for source, made in pairs
    ]
