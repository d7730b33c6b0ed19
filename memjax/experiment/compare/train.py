"""One run of `memjax compare`: an architecture trained on the task, and what it then recalls.

Shapes: B sequence, W written chunk, X query, L token, Q pair of a query.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memjax import models
from memjax.checkpoints.transplant import transplant
from memjax.config import Config, Stage
from memjax.experiment.compare.task import Rows, Task, ask, draw_rows
from memjax.layers.lora import adapter_shapes, draw_adapters
from memjax.models import find
from memjax.models.request import Asking, Batch, SpecialIds
from memjax.training.flops import counted_flops
from memjax.training.optimizer import make_optimizer, merge, split
from memjax.training.step import TrainState

IDS = SpecialIds()
HELD_OUT = 1_000_000
"""The step from which held-out batches are drawn."""
NAME = "recalled"
"""The name of the one request."""
Tree = Any


@dataclasses.dataclass(frozen=True)
class Trial:
    """One architecture and its training."""

    name: str
    config: Config
    stage: Stage


def scores(
    module: Any, params: Tree, stage: Stage, rows: Rows, key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return nats [B, X, Q] of the values, and whether each is the most likely one.

    A language model has all chunks in its context, and the last query alone.
    """
    batch = len(rows.query)
    tokens = jnp.asarray(rows.tokens).reshape(batch, -1)
    if models.can(module, "reads_rows"):
        query = jnp.asarray(rows.query)[:, -1]
        text = jnp.concatenate([tokens, query], axis=1)
        inputs = jnp.concatenate([jnp.full((batch, 1), IDS.bos), text[:, :-1]], axis=1)
        found = module.apply(
            {"params": params}, inputs, query, start=tokens.shape[1], method="score"
        )
        nats, correct = (x[:, None] for x in found)
    else:
        asking = Asking(module, Batch(tokens), IDS, stage, key)
        answer = find(module).answer
        assert answer is not None, module
        nats, correct = answer(asking, {"params": params}, {NAME: ask(rows, IDS)})[NAME]
    return nats[..., 1::2], correct[..., 1::2]


def begin(config: Config, stage: Stage, seed: int, lm: Tree | None, parts: str) -> Tree:
    """Return first parameters: drawn, and those of a language model in their places."""
    module = models.build(config, stage)
    key = jax.random.key(seed)
    params = jax.jit(module.init)(key, models.example(module, config))["params"]
    if lm is not None:
        params = transplant(params, lm, parts, "the language model")
    adapters = draw_adapters(adapter_shapes(params, stage.trainable, "trainable"), key)
    return merge(params, adapters)


def train(
    config: Config,
    stage: Stage,
    task: Task,
    seed: int,
    params: Tree,
    watch: Callable[[int, Tree], None] = lambda step, params: None,
    every: int = 0,
) -> Tree:
    """Train on the task; `watch` is given the parameters every so many steps and at the end."""
    module = models.build(config, stage)
    trainable, frozen = split(params, stage.trainable, "trainable")
    optimizer = make_optimizer(config.optimizer, stage, trainable)

    def loss(trainable: Tree, frozen: Tree, rows: Rows, key: jax.Array) -> jax.Array:
        return jnp.mean(scores(module, merge(trainable, frozen), stage, rows, key)[0])

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state: TrainState, rows: Rows) -> tuple[TrainState, jax.Array]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        nats, gradient = jax.value_and_grad(loss)(state.trainable, state.frozen, rows, key)
        change, opt_state = optimizer.update(gradient, state.opt_state, state.trainable)
        moved = jax.tree.map(jnp.add, state.trainable, change)
        return TrainState(state.step + 1, moved, state.frozen, opt_state), nats

    state = TrainState(jnp.int32(0), trainable, frozen, optimizer.init(trainable))
    for step in range(stage.steps):
        state, _ = update(state, draw_rows(task, stage.batch_size, task.written, seed, step))
        if (every and (step + 1) % every == 0) or step + 1 == stage.steps:
            watch(step + 1, state.params)
    return state.params


def scorer(module: Any, stage: Stage) -> Callable[[Tree, Rows], jax.Array]:
    """Return the compiled program of an evaluation: whether each value is the most likely one."""
    return jax.jit(lambda params, rows: scores(module, params, stage, rows)[1])


def evaluate(
    correct: Callable[[Tree, Rows], jax.Array],
    params: Tree,
    task: Task,
    batch: int,
    written: int,
    batches: int,
    controls: bool,
) -> dict[str, Any]:
    """Return the share of values recalled from all chunks.

    With `controls` also those with the memory of another sequence (`shuffled`) and with that of one
    sequence for all (`constant`), and the share by distance.
    """
    found: dict[str, list[np.ndarray]] = {}
    distance = []
    for number in range(batches):
        rows = draw_rows(task, batch, written, HELD_OUT, number)
        variants = {"recalled": rows.tokens}
        if controls:
            variants["shuffled"] = np.roll(rows.tokens, 1, axis=0)
            variants["constant"] = np.broadcast_to(rows.tokens[:1], rows.tokens.shape)
        for name, tokens in variants.items():
            recalled = correct(params, rows._replace(tokens=tokens))
            found.setdefault(name, []).append(np.asarray(recalled)[:, -1])
        distance.append(rows.distance[:, -1])
    at, right = np.concatenate(distance), np.concatenate(found["recalled"])
    shares: dict[str, Any] = {
        name: float(np.concatenate(values).mean()) for name, values in found.items()
    }
    if controls:
        shares["by_distance"] = {str(d): float(right[at == d].mean()) for d in np.unique(at)}
    return {**shares, "count": int(right.size)}


def flops(module: Any, params: Tree, stage: Stage, task: Task) -> dict[str, int]:
    """Return the FLOPs of one sequence: of writing a chunk more, and of reading the last one."""

    def forward(written: int) -> int:
        rows = jax.eval_shape(lambda: _shaped(draw_rows(task, 1, written, 0)))
        program = jax.jit(lambda p, rows: scores(module, p, stage, rows)[0])
        return counted_flops(program.trace(params, rows).jaxpr)

    few, many = forward(task.written - 1), forward(task.written)
    return {"write": many - few, "read": many - task.written * (many - few)}


def _shaped(rows: Rows) -> Rows:
    return jax.tree.map(jnp.asarray, rows)


def step_flops(module: Any, params: Tree, stage: Stage, task: Task) -> int:
    """Return the FLOPs of a training step."""
    trainable, frozen = split(params, stage.trainable, "trainable")
    rows = jax.eval_shape(lambda: _shaped(draw_rows(task, stage.batch_size, task.written, 0)))

    def loss(trainable: Tree, frozen: Tree, rows: Rows) -> jax.Array:
        return jnp.mean(scores(module, merge(trainable, frozen), stage, rows)[0])

    return counted_flops(jax.jit(jax.grad(loss)).trace(trainable, frozen, rows).jaxpr)


def measure(
    trial: Trial, task: Task, seed: int, lm: Tree | None, lengths: tuple[int, ...], batches: int
) -> Mapping[str, Any]:
    """Train one architecture with one seed, and return its figures."""
    began = time.process_time()
    config, stage = trial.config, trial.stage
    adapter, module = find(stage.family), models.build(trial.config, trial.stage)
    params = begin(config, stage, seed, lm, getattr(adapter, "lm_parts", ""))
    step, correct = step_flops(module, params, stage, task), scorer(module, stage)
    size, course = stage.batch_size, []

    def watch(at: int, params: Tree) -> None:
        found = evaluate(correct, params, task, size, task.written, max(1, batches // 4), False)
        course.append({"step": at, "flops": at * step, "recalled": found["recalled"]})

    params = train(config, stage, task, seed, params, watch, max(1, stage.steps // 4))
    # Slots belong to the chunks of a training sequence.
    fixed = models.can(module, "encodes") and config.model.layout != "text"
    lengths = lengths[:1] if fixed or models.can(module, "reads_rows") else lengths
    curve = {
        str(n): evaluate(correct, params, task, size, n, batches, controls=n == task.written)
        for n in lengths
    }
    trained, frozen = split(params, stage.trainable, "trainable")
    return {
        "name": trial.name,
        "seed": seed,
        "steps": stage.steps,
        "dials": dict(stage.dials),
        "trained_parameters": _size(trained),
        "frozen_parameters": _size(frozen),
        "step_flops": step,
        "flops": flops(module, params, stage, task),
        "course": course,
        "curve": curve,
        "cpu_seconds": time.process_time() - began,
    }


def _size(tree: Tree) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))
