"""Memories from disk in place of a frozen encoder: the same training without the encoder's
arithmetic.

Shapes: B row, C chunk, L token, M chunk that is read, K vector, E width.
"""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import FREEZING, Config, ConfigError, Optimizer, Stage, to_config_dict
from memjax.models import build, example
from memjax.objectives import Batch, SpecialIds, load_config, score
from memjax.testing import tiny_config
from memjax.testing.families import FAMILY_OBJECTIVES
from memjax.training.optimizer import make_optimizer, split
from memjax.training.step import TrainState, train_step

IDS = SpecialIds()
ROWS, CHUNKS, LENGTH, WIDTH = 8, 4, 8, 16
# Plain gradient descent in effect: with so large an epsilon Adam's update is proportional to the
# gradient.
CONFIG = tiny_config("unused", optimizer=Optimizer(epsilon=1e3))
STAGE = dataclasses.replace(
    CONFIG.stages["combined"], learning_rate=100.0, warmup_steps=0, lr_schedule="constant"
)
STEPS = 3


def in_dtype(dtype: str) -> Config:
    return dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, dtype=dtype))


def rows() -> np.ndarray:
    """Row 5 ends in its third chunk, row 6 in its first; the others are full."""
    tokens = (
        np.random.default_rng(0)
        .integers(IDS.first_content, 320, (ROWS, CHUNKS * LENGTH))
        .astype(np.int32)
    )
    tokens[5, 20:] = tokens[6, 3:] = IDS.pad
    return tokens


@pytest.fixture(scope="module")
def start(draw):
    """Module, state and step of a stage."""

    def begin(
        config: Config = CONFIG, stage: Stage = STAGE
    ) -> tuple[nn.Module, TrainState, functools.partial]:
        module = build(config, stage)
        trainable, frozen = split(
            draw(module, example(module, config))["params"], stage.trainable, "trainable"
        )
        optimizer = make_optimizer(config.optimizer, stage, trainable)
        state = TrainState(np.int32(0), trainable, frozen, optimizer.init(trainable))
        return (
            module,
            state,
            functools.partial(train_step, module=module, stage=stage, optimizer=optimizer, ids=IDS),
        )

    return begin


@pytest.fixture(scope="module")
def batches(start, quick):
    """The rows alone, and with what the model's own encoder makes of them in each dtype of
    storage."""

    @functools.cache
    def make(dtype: str = "float32") -> dict[str, Batch]:
        module, state, _ = start(in_dtype(dtype))
        chunks = rows().reshape(ROWS, CHUNKS, LENGTH)
        encode = quick(functools.partial(module.apply, method="encode"))
        memories = encode({"params": state.params}, chunks, chunks != IDS.pad).astype(np.float32)
        stored = {
            kind: Batch(rows(), memories=memories.astype(jnp.dtype(kind)))
            for kind in ("float32", "bfloat16")
        }
        return stored | {"encoder": Batch(rows())}

    return make


@pytest.fixture(scope="module")
def trained(start, batches, quick):
    """Losses of a few steps and how far all trained parameters moved, by what the batch brings."""

    @functools.cache
    def run(
        storage: str, dtype: str = "float32", microbatches: int = 1
    ) -> tuple[list[float], np.ndarray]:
        _, state, step = start(
            in_dtype(dtype), dataclasses.replace(STAGE, grad_accum_steps=microbatches)
        )
        step, losses, before = quick(step), [], state.trainable
        for _ in range(STEPS):
            state, metrics = step(state, batches(dtype)[storage])
            losses.append(float(metrics.loss))
        moved = jax.tree.map(lambda a, b: np.ravel(a - b), state.trainable, before)
        return losses, np.concatenate(jax.tree.leaves(moved))

    return run


def apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


# The same training


@pytest.mark.slow
@pytest.mark.parametrize("microbatches", [1, 2])
def test_training_on_float32_memories_is_training_with_the_encoder(
    trained, microbatches: int
) -> None:
    losses, moved = trained("float32", microbatches=microbatches)
    expected, moved_so = trained("encoder", microbatches=microbatches)
    assert losses == pytest.approx(expected, rel=1e-6)
    assert losses[-1] < losses[0] - 0.1
    assert apart(moved, moved_so) < 1e-5


@pytest.mark.slow
def test_bfloat16_memories_are_off_by_their_rounding_and_so_is_training(trained, batches) -> None:
    exact, rounded = (batches()[dtype].memories for dtype in ("float32", "bfloat16"))
    error = np.abs(rounded.astype(np.float32) - exact) / np.maximum(np.abs(exact), 1e-30)
    assert 2**-10 < error.max() <= 2**-8, "8 bits of mantissa"
    losses, moved = trained("bfloat16")
    expected, moved_so = trained("encoder")
    assert losses == pytest.approx(expected, rel=1e-4)
    assert losses != pytest.approx(expected, rel=1e-7)
    assert 1e-5 < apart(moved, moved_so) < 2e-2


@pytest.mark.slow
def test_of_an_encoder_that_computes_in_bfloat16_nothing_is_lost(trained) -> None:
    losses, moved = trained("bfloat16", "bfloat16")
    expected, moved_so = trained("encoder", "bfloat16")
    assert losses == pytest.approx(expected, rel=1e-6)
    assert apart(moved, moved_so) < 1e-5


# Without the encoder


def multiplications(jaxpr: jax.extend.core.Jaxpr) -> int:
    """Floating-point operations of all matrix products, those in a loop as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * summed * math.prod(equation.outvars[0].aval.shape)
        inner = sum(
            multiplications(part)
            for value in equation.params.values()
            for part in inner_jaxprs(value)
        )
        total += inner * (equation.params["length"] if equation.primitive.name == "scan" else 1)
    return total


def inner_jaxprs(value: object) -> list[jax.extend.core.Jaxpr]:
    parts = value if isinstance(value, (tuple, list)) else [value]
    opened = [getattr(part, "jaxpr", part) for part in parts]
    return [part for part in opened if hasattr(part, "eqns")]


def encoder_multiplications(chunks: int) -> int:
    """By the layers of one block: in, mixing, out, up and down."""
    hidden = 2 * WIDTH
    return (
        2 * chunks * LENGTH * (WIDTH * WIDTH + LENGTH * WIDTH + WIDTH * WIDTH + 2 * WIDTH * hidden)
    )


@pytest.mark.quick_cases("combined")
@pytest.mark.parametrize(
    ("objectives", "read", "microbatches"),
    [
        ({"next_token": 1.0, "copy": 1.0}, 3, 1),
        ({"next_token": 1.0, "copy": 1.0}, 3, 2),
        ({"blank_copy": 1.0}, 2, 1),
    ],
    ids=["combined", "microbatches", "blank_copy"],
)
def test_a_step_saves_just_what_the_encoder_multiplies(
    start, batches, objectives: dict, read: int, microbatches: int
) -> None:
    """Which is its forward pass over the chunks that are read: frozen, it has no other."""
    _, state, step = start(
        CONFIG, dataclasses.replace(STAGE, objectives=objectives, grad_accum_steps=microbatches)
    )
    with_encoder, without = (
        multiplications(jax.make_jaxpr(step)(state, batches()[name]).jaxpr)
        for name in ("encoder", "bfloat16")
    )
    saved = encoder_multiplications(ROWS * read)
    assert with_encoder - without == saved
    assert without > 2 * saved


def test_no_operation_reads_the_encoder(start, batches) -> None:
    """Its parameters are carried through the step and nothing else is done with them."""
    _, state, step = start()

    def readers(batch: Batch) -> set[str]:
        jaxpr = jax.make_jaxpr(lambda frozen: step(state.replace(frozen=frozen), batch))(
            state.frozen
        ).jaxpr
        return {
            equation.primitive.name
            for equation in jaxpr.eqns
            if set(jaxpr.invars) & set(variables(equation))
        }

    assert "scan" in readers(batches()["encoder"])
    assert readers(batches()["bfloat16"]) == set()


def variables(equation: jax.extend.core.JaxprEqn) -> list[jax.extend.core.Var]:
    return [v for v in equation.invars if isinstance(v, jax.extend.core.Var)]


# What is read of a row's memories


@pytest.fixture(scope="module")
def nats(start, quick):
    """Nats of reading on and copying, given the memories of all rows."""
    (module, state, _), names = start(), ("next_token", "copy")

    def run(memories):
        scores = score(
            module, {"params": state.params}, Batch(rows(), memories=memories), names, IDS
        )
        return {name: scores[name].nats for name in names}

    return quick(run)


def test_a_memory_is_read_by_later_chunks_that_have_text(nats, batches) -> None:
    """The last chunk's by none, and that of a chunk of padding by none either, whatever stands
    there."""
    memories = batches()["float32"].memories
    before = nats(memories)
    for chunk in range(CHUNKS):
        other = memories.copy()
        other[:, chunk] = other[:, chunk] * -3.0 + 100.0
        after = nats(other)
        changed = np.any(before["next_token"] != after["next_token"], axis=-1)
        text = (rows().reshape(ROWS, CHUNKS, LENGTH)[:, chunk] != IDS.pad).any(axis=-1)
        expected = text[:, None] & (np.arange(CHUNKS) > chunk)
        np.testing.assert_array_equal(changed, expected)
        assert (
            np.any(before["copy"] != after["copy"], axis=(1, 2)).tolist()
            == (text & (chunk < CHUNKS // 2)).tolist()
        )


# Refusals


def test_memories_of_another_shape_are_refused(start, batches) -> None:
    (module, state, _), memories = start(), batches()["float32"].memories
    for wrong in (
        memories[:, :2],
        memories[:, :, :, :-1],
        np.repeat(memories, 2, axis=2),
        memories[:4],
    ):
        with pytest.raises(
            ValueError, match=r"stored memories are of shape .*; the encoder gives \(8, 3, 1, 16\)"
        ):
            score(
                module, {"params": state.params}, Batch(rows(), memories=wrong), ["next_token"], IDS
            )


def test_copies_in_their_published_form_have_no_stored_memories(start, batches) -> None:
    _, state, step = start(CONFIG, dataclasses.replace(STAGE, compat=("unscored_first_tokens",)))
    with pytest.raises(
        ValueError, match="copies in their published form are encoded as they stand in the row"
    ):
        jax.eval_shape(step, state, batches()["float32"])


def changed(families: dict[str, str], model: dict | None = None, **stage: object) -> Config:
    """A run of stages of those families that names stored memories."""
    tree = to_config_dict(CONFIG)
    with tree.unlocked():
        first = tree.stages.combined.to_dict() | {"init_from": "runs/a/stages/autoencoder"} | stage
        tree.stages = {}
        for name, family in families.items():
            known = [key for key in first["objectives"] if key in FAMILY_OBJECTIVES[family]]
            objectives = dict.fromkeys(known or FAMILY_OBJECTIVES[family][:1], 1.0)
            tree.stages[name] = first | {"family": family, "objectives": objectives}
        tree.curriculum, tree.controls = tuple(families), ()
        tree.data.memories = "runs/a/memories"
        tree.model.update(model or {})
    return load_config(tree)


def test_a_run_that_can_read_memories_is_accepted() -> None:
    both = changed({"copying": "memory_model", "reading": "memory_model", "control": "causal_lm"})
    assert both.data.memories == "runs/a/memories"
    published = ("unscored_first_tokens",)
    assert (
        changed({"reading": "memory_model"}, objectives={"next_token": 1.0}, compat=published)
        .stages["reading"]
        .compat
        == published
    )
    assert FREEZING["frozen_all"] == STAGE.trainable


REFUSED = {
    "an autoencoder": (
        {"a": "autoencoder", "b": "memory_model"},
        {},
        r"config\.stages\.a\.family='autoencoder' runs its encoder",
    ),
    "an oracle": ({"a": "oracle"}, {}, r"config\.stages\.a\.family='oracle' runs its encoder"),
    "no reader": (
        {"a": "causal_lm"},
        {},
        "is read by no stage here; only stages of family memory_model with memory=True do",
    ),
    "the control alone": ({"a": "memory_model"}, {"memory": False}, "is read by no stage here"),
    "noise": (
        {"a": "memory_model"},
        {"model": {"noise": 0.5}},
        r"every step draws new noise of config\.model\.noise=0\.5; use 0",
    ),
    "published copies": (
        {"a": "memory_model"},
        {"compat": ("unscored_first_tokens",)},
        r"has no memories of the copies that copy encode under config\.stages\.a\.compat's"
        r" unscored_first_tokens",
    ),
}


@pytest.mark.parametrize(("families", "changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_run_that_cannot_read_memories_is_refused(
    families: dict, changes: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"config\.data\.memories='runs/a/memories' .*{message}"):
        changed(families, **changes)
