"""Next-token prediction and copying in two separate passes, the baseline of the combined step.

Each pass reads a row of C chunks: the text, or its first half written twice. All its chunks are
encoded, also those that no other chunk reads and repeated ones, and all are decoded, also those
without targets. The loss, and so its gradient, is that of `training.step.train_step`, which encodes
no chunk twice and decodes only chunks with targets; `tests/performance/bench/test_two_passes.py`
compares them.

Shapes: B row, N = C * L tokens of a row, C chunk, H = C // 2 chunks that are copied, L token.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from memjax import objectives
from memjax.config import Config, ConfigError, Stage
from memjax.models import PREDICT, RETAIN, MemoryModel, can
from memjax.models.cutting import chunked
from memjax.objectives import Batch, MetricSum, Scores, SpecialIds
from memjax.objectives.requests import shift_right
from memjax.training.optimizer import Tree, merge
from memjax.training.step import Metrics, TrainState, update

OBJECTIVES = ("copy", "next_token")


def check_two_passes(config: Config, stage: Stage) -> None:
    """Check that a stage's step can be run in two passes: the plain combined step only.

    Raises:
      ConfigError: it cannot.
    """
    plain = (
        can(stage.family, "reads_memories")
        and stage.memory
        and tuple(sorted(stage.objectives)) == OBJECTIVES
        and not stage.compat
        and stage.grad_accum_steps == 1
        and not config.data.memories
        and not config.model.noise
    )
    ConfigError.require(
        plain,
        "two_passes: got another stage, expected a memory_model stage with objectives"
        " next_token and copy, memory=True, grad_accum_steps=1, no stage compat, no"
        " config.model.noise and no config.data.memories",
    )


def next_token_pass(
    module: MemoryModel, params: Tree, chunks_BCL: jax.Array, ids: SpecialIds
) -> Scores:
    """Score every chunk, given memories of earlier ones."""
    inputs = shift_right(chunks_BCL, ids.bos, ids.pad)
    tasks = np.full(chunks_BCL.shape[1], PREDICT)
    return _pass(module, params, chunks_BCL, inputs, tasks, chunks_BCL != ids.pad, ids)


def copy_pass(module: MemoryModel, params: Tree, chunks_BCL: jax.Array, ids: SpecialIds) -> Scores:
    """Score the second copy of the first half of the row, given the first."""
    half = chunks_BCL.shape[1] // 2
    first = chunks_BCL[:, :half]
    input_first, input_copy = (
        shift_right(first, ids.bos, ids.pad),
        shift_right(first, ids.delimiter, ids.pad),
    )
    tasks = np.repeat([PREDICT, RETAIN], half)
    counts = jnp.concatenate([jnp.zeros(first.shape, bool), first != ids.pad], axis=1)
    twice = jnp.concatenate([first, first], axis=1)
    return _pass(
        module,
        params,
        twice,
        jnp.concatenate([input_first, input_copy], axis=1),
        tasks,
        counts,
        ids,
    )


def _pass(
    module: MemoryModel,
    params: Tree,
    chunks_BCL: jax.Array,
    inputs_BCL: jax.Array,
    tasks: np.ndarray,
    counts_BCL: jax.Array,
    ids: SpecialIds,
) -> Scores:
    """Encode all chunks, decode all chunks, and score where `counts_BCL`."""
    variables, valid = {"params": params}, chunks_BCL != ids.pad
    memories = module.apply(variables, chunks_BCL, valid, method="encode")
    scored: Any = module.apply(
        variables,
        inputs_BCL,
        chunks_BCL,
        memories,
        task=tasks,
        memory_valid=valid.any(axis=-1),
        token_valid=inputs_BCL != ids.pad,
        method="score",
    )
    nats, is_argmax = scored
    return Scores(nats, is_argmax, counts_BCL.astype(jnp.float32), chunks_BCL)


PASSES = {"next_token": next_token_pass, "copy": copy_pass}


def two_pass_step(
    state: TrainState,
    batch: Batch,
    *,
    module: MemoryModel,
    stage: Stage,
    optimizer: optax.GradientTransformation,
    ids: SpecialIds,
    seed: int = 0,
) -> tuple[TrainState, Metrics]:
    """Do the same as `train_step`, with one forward and backward pass per objective.

    One update follows, on the sum of their gradients. The stage must pass `check_two_passes`, so
    that nothing is drawn from `seed`.
    """
    chunks_BCL = chunked(batch.tokens, module.config.chunk_length)

    def loss_fn(trainable: Tree, name: str) -> tuple[jax.Array, MetricSum]:
        scores = PASSES[name](module, merge(trainable, state.frozen), chunks_BCL, ids)
        term = objectives.total(scores)
        return objectives.weighted_loss({name: term}, {name: stage.objectives[name]}), term

    found = {
        name: jax.value_and_grad(loss_fn, has_aux=True)(state.trainable, name)
        for name in stage.objectives
    }
    loss = sum((value for (value, _), _ in found.values()), jnp.float32(0.0))
    grads = jax.tree.map(lambda *parts: sum(parts), *(grads for _, grads in found.values()))
    terms = {name: term for name, ((_, term), _) in found.items()}
    return update(state, loss, terms, grads, stage, optimizer)
