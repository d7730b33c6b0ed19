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
from memjax.objectives import SpecialIds, Term
from memjax.training.optimizer import Tree, merge


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
    tokens_BN: jax.Array,
    *,
    module: nn.Module,
    stage: Stage,
    optimizer: optax.GradientTransformation,
    ids: SpecialIds,
) -> tuple[TrainState, Metrics]:
    """Loss = sum over objectives of weight * nats / count over the whole batch, whatever the number of microbatches."""
    names = tuple(sorted(stage.objectives))
    counts = objectives.counts(module, tokens_BN, names, ids)

    def loss_fn(trainable: Tree, tokens: jax.Array) -> tuple[jax.Array, dict[str, Term]]:
        params = merge(trainable, state.frozen)
        scores = objectives.score(module, {"params": params}, tokens, names, ids)
        terms = {name: objectives.total(s) for name, s in scores.items()}
        return objectives.weighted_loss(terms, stage.objectives, counts), terms

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
    (loss, terms), grads = _accumulate(grad_fn, state.trainable, tokens_BN, stage.microbatches)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    metrics = Metrics(loss=loss, terms=terms, gradient_norm=optax.tree.norm(grads), update_norm=optax.tree.norm(updates))
    return TrainState(step=state.step + 1, trainable=trainable, frozen=state.frozen, opt_state=opt_state), metrics


def _accumulate(grad_fn: Callable, trainable: Tree, tokens_BN: jax.Array, microbatches: int) -> Any:
    """Sums loss, terms and gradients over microbatches; the loss is already divided by the whole batch's counts."""
    if microbatches == 1:
        return grad_fn(trainable, tokens_BN)
    # Rows are dealt out in turn, so that every device keeps a share of every microbatch.
    tokens_mBN = tokens_BN.reshape(-1, microbatches, tokens_BN.shape[-1]).swapaxes(0, 1)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(grad_fn, trainable, tokens_mBN[0]))

    def body(total: Any, tokens: jax.Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, grad_fn(trainable, tokens)), None

    return jax.lax.scan(body, zeros, tokens_mBN)[0]


def evaluation_step(
    params: Tree, tokens_BN: jax.Array, *, module: nn.Module, names: tuple[str, ...], ids: SpecialIds
) -> dict[str, Term]:
    """Terms of one batch, without gradients."""
    scores = objectives.score(module, {"params": params}, tokens_BN, names, ids)
    return {name: objectives.total(s) for name, s in scores.items()}
