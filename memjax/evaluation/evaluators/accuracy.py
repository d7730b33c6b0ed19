"""Losses, bits per byte and accuracy of a model, teacher-forced, with intervals."""

from collections.abc import Mapping
from typing import Any

from memjax.config import Evaluator, Stage
from memjax.evaluation.evaluators.held_out import (
    BASE,
    COPY_BASE,
    held_out,
    without_memory,
)
from memjax.models import build, can
from memjax.objectives import OBJECTIVES, is_measured
from memjax.objectives.accuracy import Accuracy, NoTargetError, measurement
from memjax.objectives.recall import RECALLS, asks_to_recall
from memjax.objectives.uncertainty import ratio
from memjax.training.init_state import Run
from memjax.training.loop import Evaluate
from memjax.training.optimizer import Tree

MEMORY_OBJECTIVES = ("next_token", "copy", "plain_copy", "blank_copy")
RECALL_OBJECTIVES = ("next_token", "recall", "plain_copy", "blank_recall")
"""Objectives of models whose copies are chunks recalled by their places."""


def open_accuracy(run: Run, name: str, settings: Evaluator, base: bool = False) -> Evaluate | None:
    """Return a function that evaluates a model's objectives in their plain form.

    Objectives without a target in held-out sequences are left out.

    A memory model is evaluated on all objectives of memory models, and on copying with its best
    prompt: models that never trained to copy have no use for the delimiter or the task embedding.
    Copies of a model that reads by places of the text are all chunks of a sequence but the last,
    recalled among all their memories, unless the stage trains it to copy.

    Args:
      run: the run.
      name: the stage.
      settings: the evaluator's entry.
      base: evaluates next tokens without memories instead (`without_memory`).
    """
    stage = run.config.stages[name]
    module = build(run.config, stage)
    reads_memories = can(module, "reads_memories")
    names = MEMORY_OBJECTIVES if reads_memories else _plain_objectives(stage)
    recalls = reads_memories and asks_to_recall(run.config, stage)
    trained = set(RECALLS) & set(stage.objectives)
    if recalls:
        names = tuple(x for x in RECALL_OBJECTIVES if x != "plain_copy" or not trained)
    labels = {"next_token": BASE} | ({"recall": COPY_BASE} if recalls and trained else {})
    if base:
        module, names = without_memory(module, stage), tuple(labels)
    if module is None or not names:
        return None
    lengths = run.data.tokenizer.byte_lengths
    measure = measurement(module, names, run.ids, lengths, stage, run.mesh)

    def evaluate(params: Tree, found: Mapping[str, Any]) -> dict[str, Any]:
        batches = held_out(run, settings.examples)
        try:
            measured = measure(params, batches)
        except NoTargetError:
            return {}
        if base:
            return _numbers({label: measured[name] for name, label in labels.items()})
        if can(module, "reconstructs"):
            measured["autoencoder"] = measured.pop("reconstruction")
        if recalls and "blank_recall" in measured:
            measured["blank_copy"] = measured.pop("blank_recall")
        prompts = [name for name in ("copy", "recall", "plain_copy") if name in measured]
        if not reads_memories or not prompts:
            return _numbers(measured)
        prompt = max(prompts, key=lambda name: measured[name].accuracy)
        measured["copy"] = measured[prompt]
        measured.pop("recall", None)
        return _numbers(measured) | {"asked_to_copy_by": prompt}

    return evaluate


def _plain_objectives(stage: Stage) -> tuple[str, ...]:
    names = set(stage.objectives)
    if can(stage.family, "reconstructs"):
        names.add("reconstruction")
    return tuple(sorted({OBJECTIVES[n].held_out or n for n in names if is_measured(n)}))


def _numbers(measured: Mapping[str, Accuracy]) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for name, found in measured.items():
        nats = ratio(found.row_nats, found.row_tokens)
        accuracy = ratio(found.row_correct, found.row_tokens)
        own = {
            "nats": found.nats,
            "nats_interval": [nats.low, nats.high],
            "accuracy_interval": [accuracy.low, accuracy.high],
            "bits_per_byte": found.bits_per_byte,
            "accuracy": found.accuracy,
            "accuracy_by_position": found.by_position,
            "tokens": found.tokens,
        }
        if name == "autoencoder":
            own["exact"] = found.exact
        numbers |= {f"{name}_{key}": value for key, value in own.items()}
    return numbers
