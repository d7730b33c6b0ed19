"""A stage's programs, compiled for the devices that are here and given something to compute on: random tokens.

What is timed is what runs: `train` and `evaluate` are the steps of `memjax.training.jitted`, `generate` is `memjax.instruments.regenerate`.

Shapes: B row, N = C * L tokens of a row, C chunk, H = C // 2 chunks that are copied, L token, K vector of a memory, E its width.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from memjax.aot.flops import model_flops, token_flops
from memjax.bench.two_passes import check_two_passes, jit_two_pass_step
from memjax.config import REGRESSIONS, WEIGHTINGS, Config, ConfigError, Stage
from memjax.instruments import regenerate
from memjax.layers.lora import adapter_shapes, draw_adapters
from memjax.models import build, example
from memjax.objectives import Batch, SpecialIds
from memjax.sharding import batch_sharding, check_rows, make_mesh, replicated
from memjax.training.encode_corpus import check_frozen
from memjax.training.jitted import abstract_state, jit_evaluation_step, jit_train_step
from memjax.training.optimizer import Tree, make_optimizer, merge, split
from memjax.training.start import abstract_params
from memjax.training.step import TrainState

PROGRAMS = ("train", "evaluate", "encode", "decode", "generate", "two_passes")
"""A training step; a look at held-out rows; and of memory models alone: the memories of all chunks; all chunks scored, given their tokens
and memories; the copied chunks said token by token, given memories alone; and the training step as bench/two_passes.py has it."""
OF_MEMORY_MODELS = PROGRAMS[2:]
ASKS = ("copy", "plain_copy", "blank_copy")
"""Objectives that `generate` can ask by; the first that the stage has."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program and its arguments."""

    name: str
    config: Config
    stage: Stage
    step: Callable[[], Any]
    """Runs it once and returns its results, which may not be there yet."""
    compiled: Any
    """`jax.stages.Compiled`."""
    flops: float
    """Model FLOPs of a step, over all devices."""
    tokens: int
    """Read in a step, those of `generate` said, over all devices."""
    parameters: int
    """Of the whole model."""
    compile_seconds: float

    @property
    def planned_bytes(self) -> int:
        """What the compiler has planned of a device: arguments, results that are not written over them, and temporaries."""
        memory = self.compiled.memory_analysis()
        results = memory.output_size_in_bytes - memory.alias_size_in_bytes
        return memory.argument_size_in_bytes + results + memory.temp_size_in_bytes


def check_program(config: Config, stage_name: str, name: str) -> None:
    """Raises ConfigError if there is no such stage or program, or the stage's family has none of that name."""
    if stage_name not in config.stages:
        raise ConfigError(
            f"--stage={stage_name!r} is no stage of this config; its stages are {', '.join(sorted(config.stages))}"
        )
    if name not in PROGRAMS:
        raise ConfigError(f"--program={name!r} is not known; it can be {', '.join(PROGRAMS)}")
    stage = config.stages[stage_name]
    if name in OF_MEMORY_MODELS and not (stage.family == "memory_model" and stage.memory):
        raise ConfigError(
            f"--program={name} needs memories, and config.stages.{stage_name} has none: it trains no memory model"
        )
    if name == "two_passes":
        check_two_passes(config, stage)


def make_program(config: Config, stage_name: str, name: str) -> Program:
    """Compiles a program for all devices, as `config.mesh` lays them out, and draws what it computes on.

    Args:
      config: the run. With `config.data.memories` a training step is given random memories, whether or not the folder is there.
      stage_name: whose program it is.
      name: one of PROGRAMS.

    Raises:
      ConfigError: as `check_program`; the batch does not divide over the devices; or the stage trains an encoder whose memories are to be
        read.
    """
    check_program(config, stage_name, name)
    stage = config.stages[stage_name]
    mesh = make_mesh(config.mesh)
    check_rows(stage.rows, stage.microbatches, mesh, f"config.stages.{stage_name}.rows")
    module = build(config, stage)
    shapes = abstract_params(module, config, stage)
    trainable, _ = split(shapes, stage.trainable, f"config.stages.{stage_name}.trainable")
    check_frozen(config, stage_name, trainable)
    setting = _Setting(config, stage, mesh, module, SpecialIds())
    with jax.set_mesh(mesh):
        jitted, args, donated = getattr(setting, name)()
        began = time.perf_counter()
        compiled = jitted.lower(*args).compile()
        seconds = time.perf_counter() - began
    return Program(
        name=name,
        config=config,
        stage=stage,
        step=_donating(compiled, args) if donated else functools.partial(compiled, *args),
        compiled=compiled,
        flops=flops(config, stage, name),
        tokens=tokens(config, stage, name),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(shapes)),
        compile_seconds=seconds,
    )


def _donating(compiled: Any, args: tuple[Any, ...]) -> Callable[[], Any]:
    """Runs a training step on the state that the one before it left."""
    state, batch = args

    def step() -> Any:
        nonlocal state
        state, metrics = compiled(state, batch)
        return state, metrics

    return step


@dataclasses.dataclass(frozen=True)
class _Setting:
    """What all programs of a stage share. Each is a method that gives a jitted function, its arguments and whether the first is donated."""

    config: Config
    stage: Stage
    mesh: jax.sharding.Mesh
    module: nn.Module
    ids: SpecialIds

    @functools.cached_property
    def optimizer(self) -> Any:
        trainable, _ = split(abstract_params(self.module, self.config, self.stage), self.stage.trainable, "trainable")
        return make_optimizer(self.config.optimizer, self.stage, trainable)

    def state(self) -> TrainState:
        """Drawn weights and fresh moments; every device draws its own part."""
        wanted = abstract_state(self.config, self.stage, self.mesh, self.module, self.optimizer)

        def init(key: jax.Array) -> TrainState:
            params = self.module.init(key, example(self.module, self.config))["params"]
            params = merge(params, draw_adapters(adapter_shapes(params, self.stage.trainable, "trainable"), key))
            trainable, frozen = split(params, self.stage.trainable, "trainable")
            return TrainState(jnp.int32(0), trainable, frozen, self.optimizer.init(trainable))

        return jax.jit(init, out_shardings=jax.tree.map(lambda x: x.sharding, wanted))(jax.random.key(self.config.seed))

    def batch(self, memories: bool = False) -> Batch:
        """Random content tokens, and beside them what the stage reads."""
        config, stage = self.config, self.stage
        shape = (stage.rows, config.data.row_tokens)
        weighed = set(stage.objectives) & {*WEIGHTINGS, *REGRESSIONS}
        held = (stage.rows, config.chunks, config.model.vectors, config.model.encoder.width)

        def draw(key: jax.Array) -> Batch:
            keys = jax.random.split(key, 3)
            return Batch(
                tokens=jax.random.randint(keys[0], shape, self.ids.first_content, config.data.vocabulary),
                attribution=jax.random.uniform(keys[1], shape) if weighed else None,
                memories=jax.random.normal(keys[2], held, jnp.bfloat16) if memories else None,
            )

        return jax.jit(draw, out_shardings=batch_sharding(self.mesh))(jax.random.key(self.config.seed + 1))

    def train(self) -> tuple[Any, tuple[Any, ...], bool]:
        jitted = jit_train_step(self.config, self.stage, self.mesh, self.module, self.optimizer, self.ids)
        return jitted, (self.state(), self.batch(reads_memories(self.config, self.stage))), True

    def two_passes(self) -> tuple[Any, tuple[Any, ...], bool]:
        module: Any = self.module
        jitted = jit_two_pass_step(self.config, self.stage, self.mesh, module, self.optimizer, self.ids)
        return jitted, (self.state(), self.batch()), True

    def evaluate(self) -> tuple[Any, tuple[Any, ...], bool]:
        names = tuple(sorted(set(self.stage.objectives) - set(REGRESSIONS)))
        return self._evaluation(names), (self.state().params, self.batch()), False

    def decode(self) -> tuple[Any, tuple[Any, ...], bool]:
        # Where memories come with the batch, reading on is decoding.
        return self._evaluation(("next_token",)), (self.state().params, self.batch(memories=True)), False

    def _evaluation(self, names: tuple[str, ...]) -> Any:
        return jit_evaluation_step(self.stage, self.mesh, self.module, names, self.ids)

    def encode(self) -> tuple[Any, tuple[Any, ...], bool]:
        def encode(params: Tree, tokens_BN: jax.Array) -> jax.Array:
            chunks_BCL = tokens_BN.reshape(-1, self.config.chunks, self.config.model.chunk_length)
            memories: Any = self.module.apply({"params": params}, chunks_BCL, chunks_BCL != self.ids.pad, method="encode")
            return memories

        jitted = jax.jit(encode, out_shardings=batch_sharding(self.mesh))
        return jitted, (self.state().params, self.batch().tokens), False

    def generate(self) -> tuple[Any, tuple[Any, ...], bool]:
        ask = next((name for name in ASKS if name in self.stage.objectives), ASKS[0])
        module: Any = self.module
        say = functools.partial(regenerate, module, ids=self.ids, ask=ask, compat=self.stage.compat)
        # A function of its own, so that compiling is timed here and not taken from what `regenerate` keeps.
        jitted = jax.jit(lambda params, tokens: say(params, tokens), out_shardings=replicated(self.mesh))
        return jitted, (self.state().params, self.batch().tokens), False


def reads_memories(config: Config, stage: Stage) -> bool:
    """Whether a training step of the stage reads memories in place of running its encoder."""
    return bool(config.data.memories) and stage.family == "memory_model" and stage.memory


def tokens(config: Config, stage: Stage, name: str) -> int:
    """Tokens of a batch, or those that `generate` says."""
    said = config.chunks // 2 * config.model.chunk_length
    return stage.rows * (said if name == "generate" else config.data.row_tokens)


def flops(config: Config, stage: Stage, name: str) -> float:
    """Model FLOPs of a program by `memjax.aot.flops.FORMULA`, over a whole batch.

    `generate` counts what a decoder needs that keeps keys and values (`token_flops`), and no encoding.
    """
    if name == "train":
        return model_flops(config, stage, stored=reads_memories(config, stage)).total
    if name == "evaluate":
        return model_flops(config, stage).forward
    chunks, half = config.chunks, config.chunks // 2
    # Reading on decodes all chunks and encodes all but the last.
    reading = dataclasses.replace(stage, objectives={"next_token": 1.0}, compat=())
    whole = model_flops(config, reading)
    decoding = model_flops(config, reading, stored=True).forward
    if name == "decode":
        return decoding
    if name == "encode":
        return (whole.forward - decoding) * chunks / (chunks - 1)
    if name == "two_passes":
        passed = chunks + 2 * half
        of_memories = ("encoder", "encoder_mixing", "bridge")
        return sum(part.total * passed / (chunks - 1 if key in of_memories else chunks) for key, part in whole.parts.items())
    # A token reads the memories of the chunks before its own, the tokens before it and itself; FLOPs are linear in their number.
    length, vectors = config.model.chunk_length, config.model.vectors
    read = sum(vectors * chunk + at for chunk, at in itertools.product(range(half, 2 * half), range(1, length + 1)))
    alone, more = token_flops(config, stage, 0), token_flops(config, stage, 1) - token_flops(config, stage, 0)
    return stage.rows * (half * length * alone + read * more)
