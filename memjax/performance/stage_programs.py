"""The programs of a stage, jitted for a mesh, with their abstract arguments.

They are those in use: `train` and `evaluate` are the steps of `memjax.training.compiled_steps`,
`generate` is `memjax.inference.regenerate`. `aot` compiles them, `bench` runs them.

Shapes: B row, N = C * L tokens of a row, C chunk, L token, K vector of a memory, E its width.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from memjax.config import Config, ConfigError, Stage
from memjax.inference.regenerate import regenerate
from memjax.objectives import Batch, is_measured, weighed
from memjax.sharding import batch_sharding
from memjax.training.compiled_steps import StageSteps, jit_evaluation_step
from memjax.training.encode_corpus import reads_memories

Jitted = tuple[Any, tuple[Any, Batch]]
PROMPTS = ("copy", "plain_copy", "blank_copy", "recall")
"""Objectives whose prompt `generate` can use: the first that the stage has."""


def find_stage(config: Config, name: str) -> Stage:
    """Return a stage of a config.

    Raises:
      ConfigError: there is none of that name.
    """
    ConfigError.require(
        name in config.stages,
        f"--stage: got {name!r}, expected a stage of this config:"
        f" {', '.join(sorted(config.stages))}",
    )
    return config.stages[name]


class StagePrograms(StageSteps):
    """The programs of a stage: methods that return a jitted function and its abstract arguments.

    The arguments are the training state or all parameters, and the batch.
    """

    @property
    def parameters(self) -> int:
        """Return the number of parameters of the whole model."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.shapes))

    def batch(self, memories: bool = False) -> Batch:
        """Return an abstract batch, with or without stored memories."""
        config, model = self.config, self.config.model

        def rows(shape: tuple[int, ...], dtype: Any) -> Any:
            shape = (self.stage.batch_size, *shape)
            return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(self.mesh))

        length = (config.data.sequence_length,)
        held = (config.chunks, model.memory_vectors, model.encoder.width)
        return Batch(
            tokens=rows(length, jnp.int32),
            attribution=rows(length, jnp.float32) if weighed(self.stage) else None,
            memories=rows(held, jnp.bfloat16) if memories else None,
        )

    def train(self) -> Jitted:
        """Return the training step."""
        batch = self.batch(reads_memories(self.config, self.stage, self.trainable))
        return self.jit_train_step(), (self.state, batch)

    def evaluate(self) -> Jitted:
        """Return the evaluation step of all objectives that held-out sequences have."""
        return self.scoring(*sorted(filter(is_measured, self.stage.objectives)))

    def scoring(self, *names: str, memories: bool = False) -> Jitted:
        """Return an evaluation step of these objectives."""
        jitted = jit_evaluation_step(self.stage, self.mesh, self.module, names, self.ids)
        return jitted, (self.state.params, self.batch(memories))

    def generate(self) -> Jitted:
        """Return greedy reconstruction of the copied chunks from memories alone."""
        prompt = next((name for name in PROMPTS if name in self.stage.objectives), PROMPTS[0])
        decode = functools.partial(
            regenerate, self.module, ids=self.ids, ask=prompt, compat=self.stage.compat
        )
        # A new function, so that compilation is timed here and not cached by `regenerate`.
        jitted = jax.jit(lambda params, batch: decode(params, batch.tokens))
        return jitted, (self.state.params, self.batch())
