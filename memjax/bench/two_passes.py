"""Next tokens and copies in two passes, as one would write them without a shared call: what the combined step is compared with.

Each pass reads a row of C chunks: the text, or its first half written twice. All its chunks are encoded, also those that no other reads
and those that repeat others, and all are decoded, also those that are no target. The loss, and so its gradient, is that of
`training.step.train_step`, which encodes no chunk twice and decodes none in vain; `tests/bench/test_two_passes.py` compares them.

Shapes: B row, N = C * L tokens of a row, C chunk, H = C // 2 chunks that are copied, L token.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from memjax import objectives
from memjax.config import Config, ConfigError, Stage
from memjax.models import PREDICT, RETAIN, MemoryModel
from memjax.objectives import Batch, Scores, SpecialIds, Term
from memjax.objectives.requests import shift_right
from memjax.objectives.terms import chunked
from memjax.sharding import batch_sharding, replicated
from memjax.training.jitted import abstract_state
from memjax.training.optimizer import Tree, merge
from memjax.training.step import Metrics, TrainState

OBJECTIVES = ("copy", "next_token")


def check_two_passes(config: Config, stage: Stage) -> None:
    """Raises ConfigError if a stage's step has no form in two passes: it is written for the plain combined step alone."""
    plain = stage.family == "memory_model" and stage.memory and tuple(sorted(stage.objectives)) == OBJECTIVES
    if not plain or stage.compat or stage.microbatches > 1 or config.data.memories or config.model.noise:
        raise ConfigError(
            "two_passes is the step of a memory_model stage whose objectives are next_token and copy, with memory=True, microbatches=1, no"
            " stage compat, no config.model.noise and no config.data.memories; this stage is another"
        )


def next_token_pass(module: MemoryModel, params: Tree, chunks_BCL: jax.Array, ids: SpecialIds) -> Scores:
    """Every chunk, given memories of those before it."""
    inputs = shift_right(chunks_BCL, ids.bos, ids.pad)
    tasks = np.full(chunks_BCL.shape[1], PREDICT)
    return _pass(module, params, chunks_BCL, inputs, tasks, chunks_BCL != ids.pad, ids)


def copy_pass(module: MemoryModel, params: Tree, chunks_BCL: jax.Array, ids: SpecialIds) -> Scores:
    """The first half of the row and the same again, of which only the second time counts."""
    half = chunks_BCL.shape[1] // 2
    first = chunks_BCL[:, :half]
    read, said = shift_right(first, ids.bos, ids.pad), shift_right(first, ids.delimiter, ids.pad)
    tasks = np.repeat([PREDICT, RETAIN], half)
    counts = jnp.concatenate([jnp.zeros(first.shape, bool), first != ids.pad], axis=1)
    twice = jnp.concatenate([first, first], axis=1)
    return _pass(module, params, twice, jnp.concatenate([read, said], axis=1), tasks, counts, ids)


def _pass(
    module: MemoryModel,
    params: Tree,
    chunks_BCL: jax.Array,
    inputs_BCL: jax.Array,
    tasks: np.ndarray,
    counts_BCL: jax.Array,
    ids: SpecialIds,
) -> Scores:
    """Encodes all chunks, decodes all chunks, and scores where `counts_BCL`."""
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
    nats, correct = scored
    return Scores(nats, correct, counts_BCL.astype(jnp.float32), chunks_BCL)


PASSES = {"next_token": next_token_pass, "copy": copy_pass}


def two_pass_step(
    state: TrainState,
    batch: Batch,
    *,
    module: MemoryModel,
    stage: Stage,
    optimizer: optax.GradientTransformation,
    ids: SpecialIds,
) -> tuple[TrainState, Metrics]:
    """What `train_step` does, with a forward and a backward pass for each objective and one update on the sum of their gradients."""
    chunks_BCL = chunked(batch.tokens, module.config.chunk_length)

    def loss_fn(trainable: Tree, name: str) -> tuple[jax.Array, Term]:
        scores = PASSES[name](module, merge(trainable, state.frozen), chunks_BCL, ids)
        term = objectives.total(scores)
        return objectives.weighted_loss({name: term}, {name: stage.objectives[name]}), term

    found = {name: jax.value_and_grad(loss_fn, has_aux=True)(state.trainable, name) for name in stage.objectives}
    loss = sum((value for (value, _), _ in found.values()), jnp.float32(0.0))
    grads = jax.tree.map(lambda *parts: sum(parts), *(grads for _, grads in found.values()))
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    metrics = Metrics(
        loss=loss,
        terms={name: term for name, ((_, term), _) in found.items()},
        gradient_norm=optax.tree.norm(grads),
        update_norm=optax.tree.norm(updates),
    )
    return TrainState(step=state.step + 1, trainable=trainable, frozen=state.frozen, opt_state=opt_state), metrics


def jit_two_pass_step(
    config: Config,
    stage: Stage,
    mesh: jax.sharding.Mesh,
    module: MemoryModel,
    optimizer: optax.GradientTransformation,
    ids: SpecialIds,
) -> Any:
    """`two_pass_step` of (state, batch), jitted as `training.jitted.jit_train_step` does it; for stages that pass `check_two_passes`."""
    state = jax.tree.map(lambda x: x.sharding, abstract_state(config, stage, mesh, module, optimizer))
    step = functools.partial(two_pass_step, module=module, stage=stage, optimizer=optimizer, ids=ids)
    return jax.jit(step, in_shardings=(state, batch_sharding(mesh)), out_shardings=(state, replicated(mesh)), donate_argnums=0)
