"""One update as one jitted function.

Shapes: B row, N token of a row, m microbatch.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from memjax import objectives
from memjax.config import Stage
from memjax.objectives import Batch, Scores, SpecialIds, Term
from memjax.training.optimizer import Tree, merge

_DEFAULT = Stage()


@flax.struct.dataclass
class TrainState:
    """Everything an update reads and writes. There is no generator state: all randomness is a function of (seed, step)."""

    step: jax.Array
    trainable: Any
    """Parameters that move."""
    frozen: Any
    """Parameters that do not: never differentiated, without optimizer state."""
    opt_state: optax.OptState

    @property
    def params(self) -> Tree:
        """All parameters as the module knows them."""
        return merge(self.trainable, self.frozen)


@flax.struct.dataclass
class Metrics:
    """What one step tells."""

    loss: jax.Array
    terms: dict[str, Term]
    gradient_norm: jax.Array
    """Before clipping."""
    update_norm: jax.Array


def train_step(
    state: TrainState,
    batch: Batch | jax.Array,
    *,
    module: nn.Module,
    stage: Stage,
    optimizer: optax.GradientTransformation,
    ids: SpecialIds,
    seed: int = 0,
) -> tuple[TrainState, Metrics]:
    """Loss = sum over objectives of weight * nats / count over the whole batch, whatever the number of microbatches.

    Only what a passage is told apart from, in retrieval, are the passages of its own microbatch.
    """
    batch = objectives.as_batch(batch)
    names = tuple(sorted(stage.objectives))
    weights = objectives.weights(module, batch, names, ids, stage)
    counts = {name: jnp.sum(weight) for name, weight in weights.items()}
    # A function of (seed, step), so that a run that goes on draws what it would have drawn.
    key = jax.random.fold_in(jax.random.key(seed), state.step)

    def loss_fn(trainable: Tree, batch: Batch, key: jax.Array) -> tuple[jax.Array, dict[str, Term]]:
        params = merge(trainable, state.frozen)
        scores = objectives.score(module, {"params": params}, batch, names, ids, stage, key)
        if "chunk_means" in stage.compat:
            scores = {name: _chunk_means(module, s, weights[name]) for name, s in scores.items()}
        terms = {name: objectives.total(s) for name, s in scores.items()}
        return objectives.weighted_loss(terms, stage.objectives, counts), terms

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, terms), grads = _accumulate(grad_fn, state.trainable, batch, key, stage.microbatches)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    metrics = Metrics(loss=loss, terms=terms, gradient_norm=optax.tree.norm(grads), update_norm=optax.tree.norm(updates))
    return TrainState(step=state.step + 1, trainable=trainable, frozen=state.frozen, opt_state=opt_state), metrics


def _chunk_means(module: nn.Module, scores: Scores, weight_BXL: jax.Array) -> Scores:
    # Of a memory model some chunks may not be scored; they count all the same.
    chunks = getattr(module, "chunks", weight_BXL.shape[1])
    return objectives.chunk_means(scores, jnp.sum(weight_BXL, axis=(0, 2)), chunks)


def _accumulate(grad_fn: Callable, trainable: Tree, batch: Batch, key: jax.Array, microbatches: int) -> Any:
    """Sums loss, terms and gradients over microbatches; the loss is already divided by the whole batch's counts."""
    if microbatches == 1:
        return grad_fn(trainable, batch, key)
    # Rows are dealt out in turn, so that every device keeps a share of every microbatch.
    parts = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch)
    keys = jax.random.split(key, microbatches)
    first = jax.tree.map(lambda x: x[0], parts)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(grad_fn, trainable, first, key))

    def body(total: Any, part: tuple[Batch, jax.Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, grad_fn(trainable, *part)), None

    return jax.lax.scan(body, zeros, (parts, keys))[0]


def evaluation_step(
    params: Tree,
    batch: Batch | jax.Array,
    *,
    module: nn.Module,
    names: tuple[str, ...],
    ids: SpecialIds,
    stage: Stage = _DEFAULT,
) -> dict[str, Term]:
    """Terms of one batch, without gradients and without noise."""
    scores = objectives.score(module, {"params": params}, batch, names, ids, stage)
    return {name: objectives.total(s) for name, s in scores.items()}
