"""One update as one function, to be jitted.

Shapes: B sequence, N token of a sequence, m microbatch.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.interpreters.partial_eval import dce_jaxpr
from jax.sharding import PartitionSpec

from memjax import objectives
from memjax.config import Stage
from memjax.models import find
from memjax.objectives import Batch, MetricSum, Request, Scores, SpecialIds
from memjax.sharding import axis_size, sum_copies
from memjax.training.optimizer import Tree, learning_rate, merge

_DEFAULT = Stage()


@flax.struct.dataclass
class TrainState:
    """The state that an update reads and writes.

    It has no random state: all randomness is a function of (seed, step).
    """

    step: jax.Array
    trainable: Any
    """Parameters that are trained."""
    frozen: Any
    """Other parameters, never differentiated and without optimizer state."""
    opt_state: optax.OptState

    @property
    def params(self) -> Tree:
        """All parameters, in the module's tree."""
        return merge(self.trainable, self.frozen)


@flax.struct.dataclass
class Metrics:
    """The numbers of one step, on the device until they are logged."""

    loss: jax.Array
    terms: dict[str, MetricSum]
    learning_rate: jax.Array
    """The learning rate of this step, before the factors of `config.optimizer.rate_rules`."""
    gradient_norm: jax.Array
    """The global norm of the gradient, before clipping."""
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
    """Update the trainable parameters once.

    Loss = sum over objectives of weight * nats / count over the whole batch, for any number of
    microbatches. In retrieval the candidates of a query are the passages of its own microbatch.

    Args:
      state: the state, which a jitted step donates.
      batch: B sequences, alone or with stored memories and attributions.
      module: the model.
      stage: objectives and their weights, microbatches and learning-rate schedule.
      optimizer: of the trainable parameters.
      ids: reserved ids.
      seed: of the run; noise and random requests are a function of (seed, step).

    Returns:
      The state after the update, and the metrics of the batch before it.
    """
    names = tuple(sorted(stage.objectives))
    # A function of (seed, step), so that a resumed run draws what it would have drawn.
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    build = functools.partial(objectives.build_requests, module, names=names, ids=ids, stage=stage)
    parts = _microbatches(objectives.as_batch(batch), build, key, stage.grad_accum_steps)
    weights = objectives.weights(parts.requests, names)
    counts = {name: jnp.sum(weight) for name, weight in weights.items()}

    def loss_fn(trainable: Tree, part: Part) -> tuple[jax.Array, dict[str, MetricSum]]:
        params = merge(trainable, state.frozen)
        scores = objectives.score(
            module, {"params": params}, part.batch, names, ids, stage, part.key, part.requests
        )
        if "chunk_means" in stage.compat:
            scores = {name: _chunk_means(module, s, weights[name]) for name, s in scores.items()}
        terms = {name: objectives.total(s) for name, s in scores.items()}
        return objectives.weighted_loss(terms, stage.objectives, counts), terms

    (loss, terms), grads = _accumulate(
        loss_fn, state.trainable, parts, stage.grad_accum_steps, module
    )
    return update(state, loss, terms, grads, stage, optimizer)


def update(
    state: TrainState,
    loss: jax.Array,
    terms: dict[str, MetricSum],
    grads: Tree,
    stage: Stage,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """Return the state after an update by these gradients, and the metrics of the step."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    metrics = Metrics(
        loss=loss,
        terms=terms,
        learning_rate=jnp.asarray(learning_rate(stage)(state.step)),
        gradient_norm=optax.tree.norm(grads),
        update_norm=optax.tree.norm(updates),
    )
    return TrainState(
        step=state.step + 1, trainable=trainable, frozen=state.frozen, opt_state=opt_state
    ), metrics


class Part(NamedTuple):
    """A microbatch, or all of them on a leading axis."""

    batch: Batch
    requests: dict[str, Request]
    key: jax.Array


def _microbatches(batch: Batch, build: Callable, key: jax.Array, microbatches: int) -> Part:
    """Return the microbatches of a step with their requests, which are built once."""
    if microbatches == 1:
        return Part(batch, build(batch, key=key), key)
    # Sequences are dealt out in turn, so that every device keeps a share of every microbatch.
    parts = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch)
    keys = jax.random.split(key, microbatches)
    return Part(parts, jax.vmap(lambda part, key: build(part, key=key))(parts, keys), keys)


def _chunk_means(module: nn.Module, scores: Scores, weight: jax.Array) -> Scores:
    # A memory model may leave some chunks unscored, which count too.
    chunks = getattr(module, "chunks", weight.shape[-2])
    count_X = jnp.sum(weight, axis=(*range(weight.ndim - 2), weight.ndim - 1))
    return objectives.chunk_means(scores, count_X, chunks)


def _accumulate(
    loss_fn: Callable, trainable: Tree, parts: Part, microbatches: int, module: nn.Module
) -> Any:
    """Sum loss, terms and gradients over microbatches.

    The loss of a microbatch is divided by the counts of the whole batch.
    """
    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if microbatches == 1:
        return grad_fn(trainable, parts)

    def summed(trainable: Tree, parts: Part) -> Any:
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            jax.eval_shape(grad_fn, trainable, _first(parts)),
        )

        def body(total: Any, part: Part) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, grad_fn(trainable, part)), None

        return jax.lax.scan(body, zeros, parts)[0]

    if axis_size("data") == 1 or not _adds_rows(loss_fn, trainable, _first(parts), module):
        return summed(trainable, parts)
    rows = parts.batch.tokens.shape[1:2]
    layouts = jax.tree.map(
        lambda x: PartitionSpec(None, "data") if x.shape[1:2] == rows else PartitionSpec(), parts
    )
    return sum_copies(summed, trainable, parts, layouts)


def _first(parts: Part) -> Part:
    return jax.tree.map(lambda x: x[0], parts)


def _adds_rows(loss_fn: Callable, trainable: Tree, part: Part, module: nn.Module) -> bool:
    """Return whether a loss is a sum over rows, so that any of them can be computed apart.

    It is not where rows are compared, or where a draw has the shape of the whole microbatch.
    """
    traced = jax.make_jaxpr(lambda key: loss_fn(trainable, part._replace(key=key)))(part.key)
    _, (draws,) = dce_jaxpr(traced.jaxpr, [True] * len(traced.jaxpr.outvars))
    return not draws and not {"retrieves", "ranks"} & find(module).capabilities


def evaluation_step(
    params: Tree,
    batch: Batch | jax.Array,
    *,
    module: nn.Module,
    names: tuple[str, ...],
    ids: SpecialIds,
    stage: Stage = _DEFAULT,
) -> dict[str, MetricSum]:
    """Return the metric sums of one batch, without gradients and without noise."""
    scores = objectives.score(module, {"params": params}, batch, names, ids, stage)
    return {name: objectives.total(s) for name, s in scores.items()}
