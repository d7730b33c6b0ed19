"""The steps of training as programs for a mesh: what lies where on the way in and out, and what is reused.

The same functions serve a run, its compilation for a machine that is not there, and its timing. They are called, or lowered, inside
`jax.set_mesh(mesh)`.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from memjax.config import Config, Stage
from memjax.objectives import SpecialIds
from memjax.sharding import abstract, batch_sharding, replicated, shardings, state_shardings
from memjax.training.optimizer import split
from memjax.training.start import abstract_params
from memjax.training.step import TrainState, evaluation_step, train_step


def abstract_state(
    config: Config, stage: Stage, mesh: jax.sharding.Mesh, module: nn.Module, optimizer: optax.GradientTransformation
) -> TrainState:
    """Shapes, dtypes and layouts of a stage's state: what is restored onto, and what a step is compiled for."""
    shapes = abstract_params(module, config, stage)
    params = abstract(shapes, shardings(shapes, config.mesh.rules, mesh))
    trainable, frozen = split(params, stage.trainable, "trainable")
    moments = jax.eval_shape(optimizer.init, trainable)
    step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    places = jax.tree.map(lambda x: x.sharding, trainable)
    return TrainState(
        step=step,
        trainable=trainable,
        frozen=frozen,
        opt_state=abstract(moments, state_shardings(moments, trainable, places, mesh)),
    )


def jit_train_step(
    config: Config,
    stage: Stage,
    mesh: jax.sharding.Mesh,
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    ids: SpecialIds,
) -> Any:
    """`train_step` of (state, batch), jitted: the state stays where it lies and its memory is reused; metrics are whole everywhere."""
    state = jax.tree.map(lambda x: x.sharding, abstract_state(config, stage, mesh, module, optimizer))
    step = functools.partial(train_step, module=module, stage=stage, optimizer=optimizer, ids=ids, seed=config.seed)
    return jax.jit(step, in_shardings=(state, batch_sharding(mesh)), out_shardings=(state, replicated(mesh)), donate_argnums=0)


def jit_evaluation_step(
    stage: Stage, mesh: jax.sharding.Mesh, module: nn.Module, names: tuple[str, ...], ids: SpecialIds
) -> Any:
    """`evaluation_step` of (params, batch), jitted: parameters are taken where they lie, terms are whole everywhere."""
    step = functools.partial(evaluation_step, module=module, names=names, ids=ids, stage=stage)
    return jax.jit(step, out_shardings=replicated(mesh))
