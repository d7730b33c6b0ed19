"""A stage on a mesh: its model, its optimizer and its steps, jitted with the layouts of arrays.

Runs, ahead-of-time compilation and benchmarks use the same functions. Call them, or lower them,
inside `jax.set_mesh(mesh)`.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from memjax.config import Config, Stage
from memjax.models import build
from memjax.objectives import SpecialIds
from memjax.sharding import (
    abstract,
    batch_sharding,
    check_rows,
    replicated,
    shardings,
    state_shardings,
)
from memjax.training.init_state import abstract_params
from memjax.training.optimizer import make_optimizer, split
from memjax.training.step import TrainState, evaluation_step, train_step

_DEFAULT_IDS = SpecialIds()


class StageSteps:
    """The model of a stage, its optimizer and its training step, for a mesh.

    Args:
      config: the run.
      name: the stage.
      mesh: the devices, which may be those of an absent machine.
      ids: reserved ids; by default those of the tokenizers of memjax.

    Attributes:
      stage: the settings of the stage.
      module: the model.
      shapes: shapes and dtypes of all its parameters.
      trainable: the trainable parameters among them.
      optimizer: the optimizer of those.

    Raises:
      ConfigError: a batch does not divide over the devices, no rule matches a parameter, a rule
        gives a rank to no matrix, or Muon is to update a parameter that is no matrix.
    """

    def __init__(
        self, config: Config, name: str, mesh: jax.sharding.Mesh, ids: SpecialIds = _DEFAULT_IDS
    ):
        self.config, self.stage, self.mesh, self.ids = config, config.stages[name], mesh, ids
        stage, key = self.stage, f"config.stages.{name}"
        check_rows(stage.batch_size, stage.grad_accum_steps, mesh, f"{key}.batch_size")
        self.module: Any = build(config, stage)
        self.shapes = abstract_params(self.module, config, stage, f"{key}.trainable")
        self.trainable, _ = split(self.shapes, stage.trainable, f"{key}.trainable")
        self.optimizer = make_optimizer(config.optimizer, stage, self.trainable)

    @functools.cached_property
    def state(self) -> TrainState:
        """Shapes, dtypes and layouts of the state, to restore onto and to compile for."""
        params = abstract(self.shapes, shardings(self.shapes, self.config.mesh.rules, self.mesh))
        trainable, frozen = split(params, self.stage.trainable, "trainable")
        moments = jax.eval_shape(self.optimizer.init, trainable)
        step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(self.mesh))
        places = state_shardings(moments, trainable, layouts(trainable), self.mesh)
        return TrainState(step, trainable, frozen, abstract(moments, places))

    def jit_train_step(self, step: Callable[..., Any] = train_step) -> Any:
        """Jit a step of (state, batch), by default `train_step`.

        The state is donated and keeps its layout; metrics are replicated.
        """
        state = layouts(self.state)
        known = functools.partial(
            step,
            module=self.module,
            stage=self.stage,
            optimizer=self.optimizer,
            ids=self.ids,
            seed=self.config.seed,
        )
        return jax.jit(
            known,
            in_shardings=(state, batch_sharding(self.mesh)),
            out_shardings=(state, replicated(self.mesh)),
            donate_argnums=0,
        )


def layouts(tree: Any) -> Any:
    """Return the sharding of every leaf of a tree, arrays or abstract."""
    return jax.tree.map(lambda x: x.sharding, tree)


def jit_evaluation_step(
    stage: Stage,
    mesh: jax.sharding.Mesh,
    module: nn.Module,
    names: tuple[str, ...],
    ids: SpecialIds,
) -> Any:
    """Jit `evaluation_step` of (params, batch): parameters keep their layout."""
    step = functools.partial(evaluation_step, module=module, names=names, ids=ids, stage=stage)
    return jax.jit(step, out_shardings=replicated(mesh))
