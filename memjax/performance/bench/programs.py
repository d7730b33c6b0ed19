"""A stage's programs, compiled for the local devices, with random tokens as inputs.

Shapes: B row, N token of a row, C chunk, K vector of a memory, E its width.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from memjax.allocator import suit
from memjax.config import Config, ConfigError, Stage
from memjax.layers.lora import adapter_shapes, draw_adapters
from memjax.models import can, example
from memjax.objectives import Batch
from memjax.performance.bench import timing
from memjax.performance.bench.two_passes import check_two_passes, two_pass_step
from memjax.performance.stage_programs import Jitted, StagePrograms, find_stage
from memjax.sharding import batch_sharding, make_mesh
from memjax.sharding.chips import peak_flops
from memjax.training.compiled_steps import layouts
from memjax.training.encode_corpus import check_frozen, reads_memories
from memjax.training.flops import model_flops, token_flops
from memjax.training.optimizer import Tree, as_stored, merge, split
from memjax.training.step import TrainState, train_step

PROGRAMS = ("train", "gradients", "evaluate", "encode", "decode", "generate", "two_passes")
"""A training step; the same without an update; an evaluation step; and of memory models alone:
encoding all chunks; scoring all chunks, given their tokens and memories; greedy decoding of the
copied chunks from memories alone; and the training step of bench/two_passes.py."""
OF_MEMORY_MODELS = PROGRAMS[3:]
TRAINING = ("train", "gradients", "two_passes")


@dataclasses.dataclass(frozen=True)
class Report:
    """Timing of one program over all devices; a step is one run of it."""

    label: str
    stage: str
    program: str
    rows: int
    tokens: int
    """Tokens read per step; for `generate`, tokens generated."""
    parameters: int
    model_flops: float
    """Model FLOPs per step, by memjax.training.flops.FORMULA."""
    compile_seconds: float
    planned_bytes: int
    """Bytes per device that the compiler planned: arguments, results that do not overwrite them,
    and temporaries."""
    seconds: tuple[float, ...]
    """Seconds of every timed step, in order."""
    peak: float | None
    """FLOP/s of bfloat16 products of all devices; None if unknown."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain values, with those derived from the median."""
        spread = timing.quartiles(self.seconds)
        rate = self.model_flops / spread["median"]
        return dataclasses.asdict(self) | {
            "seconds": list(self.seconds),
            "spread": spread,
            "tokens_per_second": self.tokens / spread["median"],
            "model_flops_per_second": rate,
            "mfu": None if self.peak is None else rate / self.peak,
        }


class Program(NamedTuple):
    """A compiled program and its arguments."""

    step: Callable[[], Any]
    """Runs it once and returns its results, which may not be ready yet."""
    compiled: Any
    """`jax.stages.Compiled`."""
    report: Report
    """All of its report but the seconds and the label."""


def check_program(config: Config, stage_name: str, name: str) -> None:
    """Check that the stage exists, and that its family has the program.

    Raises:
      ConfigError: it does not.
    """
    stage = find_stage(config, stage_name)
    ConfigError.require(
        name not in OF_MEMORY_MODELS or (can(stage.family, "reads_memories") and stage.memory),
        f"--program={name}: got stage {stage_name!r} without memories, expected a stage that"
        " trains a memory model",
    )
    if name == "two_passes":
        check_two_passes(config, stage)


def make_program(config: Config, stage_name: str, name: str) -> Program:
    """Compile a program for all devices, in the mesh of `config.mesh`, and draw its inputs.

    Args:
      config: the run. With `config.data.memories` a training step reads random memories, whether or
        not the folder exists.
      stage_name: the stage.
      name: one of PROGRAMS.

    Raises:
      ConfigError: as `check_program`; the batch does not divide over the devices; or the stage
        trains an encoder whose memories are to be read.
    """
    check_program(config, stage_name, name)
    programs = _BenchPrograms(config, stage_name, make_mesh(config.mesh))
    check_frozen(config, stage_name, programs.trainable)
    with jax.set_mesh(programs.mesh):
        jitted, (first, batch) = getattr(programs, name)()
        began = time.perf_counter()
        compiled = suit(jitted.lower(first, batch).compile())
        seconds = time.perf_counter() - began
        state, batch = programs.draw_state(), programs.draw_batch(batch)
    memory, peak = compiled.memory_analysis(), peak_flops(jax.devices()[0].device_kind)
    stored = reads_memories(config, programs.stage, programs.trainable)
    report = Report(
        label="",
        stage=stage_name,
        program=name,
        rows=programs.stage.batch_size,
        tokens=tokens(config, programs.stage, name),
        parameters=programs.parameters,
        model_flops=flops(config, programs.stage, name, stored),
        compile_seconds=seconds,
        planned_bytes=(
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
        ),
        seconds=(),
        peak=None if peak is None else peak * jax.device_count(),
    )
    if name in TRAINING:
        return Program(_training(compiled, state, batch), compiled, report)
    return Program(functools.partial(compiled, state.params, batch), compiled, report)


def _training(compiled: Any, state: TrainState, batch: Batch) -> Callable[[], Any]:
    """Return a function that runs a training step on the state of the previous one."""

    def step() -> Any:
        nonlocal state
        state, metrics = compiled(state, batch)
        return state, metrics

    return step


class _BenchPrograms(StagePrograms):
    """The programs that only benchmarks have, and random arguments of all."""

    def gradients(self) -> Jitted:
        def still_step(*args: Any, optimizer: Any, **known: Any) -> Any:
            del optimizer
            return train_step(*args, optimizer=optax.set_to_zero(), **known)

        return self.jit_train_step(still_step), self.train()[1]

    def two_passes(self) -> Jitted:
        return self.jit_train_step(two_pass_step), (self.state, self.batch())

    def decode(self) -> Jitted:
        # With memories in the batch, next-token scoring only decodes.
        return self.scoring("next_token", memories=True)

    def encode(self) -> Jitted:
        def encode(params: Tree, batch: Batch) -> jax.Array:
            length = self.config.model.chunk_length
            chunks_BCL = batch.tokens.reshape(-1, self.config.chunks, length)
            valid = chunks_BCL != self.ids.pad
            return self.module.apply({"params": params}, chunks_BCL, valid, method="encode")

        jitted = jax.jit(encode, out_shardings=batch_sharding(self.mesh))
        return jitted, (self.state.params, self.batch())

    def draw_state(self) -> TrainState:
        """Return random weights and initial moments; every device draws its own part."""
        rules = self.stage.trainable

        def init(key: jax.Array) -> TrainState:
            params = self.module.init(key, example(self.module, self.config))["params"]
            adapters = draw_adapters(adapter_shapes(params, rules, "trainable"), key)
            stored = as_stored(merge(params, adapters), self.stage)
            trainable, frozen = split(stored, rules, "trainable")
            return TrainState(jnp.int32(0), trainable, frozen, self.optimizer.init(trainable))

        drawn = jax.jit(init, out_shardings=layouts(self.state))
        return drawn(jax.random.key(self.config.seed))

    def draw_batch(self, wanted: Batch) -> Batch:
        """Return random content tokens, with the other inputs of an abstract batch."""
        weighed, held = wanted.attribution, wanted.memories

        def draw(key: jax.Array) -> Batch:
            keys = jax.random.split(key, 3)
            return Batch(
                tokens=jax.random.randint(
                    keys[0],
                    wanted.tokens.shape,
                    self.ids.first_content,
                    self.config.data.vocab_size,
                ),
                attribution=weighed and jax.random.uniform(keys[1], weighed.shape),
                memories=held and jax.random.normal(keys[2], held.shape, held.dtype),
            )

        return jax.jit(draw, out_shardings=layouts(wanted))(jax.random.key(self.config.seed + 1))


def tokens(config: Config, stage: Stage, name: str) -> int:
    """Return the tokens of a batch, or those that `generate` generates."""
    generated = config.chunks // 2 * config.model.chunk_length
    return stage.batch_size * (generated if name == "generate" else config.data.sequence_length)


def flops(config: Config, stage: Stage, name: str, stored: bool = False) -> float:
    """Return the model FLOPs of a program by `memjax.training.flops.FORMULA`, over a whole batch.

    `stored`: training reads stored memories. `generate` counts a decoder with a KV cache
    (`token_flops`), and no encoding.
    """
    if name in ("train", "gradients"):
        return model_flops(config, stage, stored).total
    # Other programs draw no chunks.
    stage = dataclasses.replace(stage, scored_chunks={})
    if name == "evaluate":
        return model_flops(config, stage).forward
    chunks, half, length = config.chunks, config.chunks // 2, config.model.chunk_length
    # Next-token prediction decodes all chunks and encodes all but the last.
    reading = dataclasses.replace(stage, objectives={"next_token": 1.0}, compat=())
    whole = model_flops(config, reading)
    decoding = model_flops(config, reading, stored=True).forward
    if name == "decode":
        return decoding
    if name == "encode":
        return (whole.forward - decoding) * chunks / (chunks - 1)
    if name == "two_passes":
        # The row of copies is the first half twice. Each pass encodes all chunks of its row.
        twice = dataclasses.replace(config.data, sequence_length=2 * half * length)
        copying = model_flops(dataclasses.replace(config, data=twice), reading)
        of_memories = ("encoder", "encoder_mixing", "bridge")
        return sum(
            part.total * (count / (count - 1) if key in of_memories else 1)
            for count, passed in ((chunks, whole), (2 * half, copying))
            for key, part in passed.parts.items()
        )
    # A token reads the memories of the chunks before its own, the tokens before it and itself;
    # FLOPs are linear in their number.
    vectors = config.model.memory_vectors
    read = sum(
        vectors * chunk + at
        for chunk, at in itertools.product(range(half, 2 * half), range(1, length + 1))
    )
    alone = token_flops(config, stage, 0)
    more = token_flops(config, stage, 1) - alone
    return stage.batch_size * (half * length * alone + read * more)
