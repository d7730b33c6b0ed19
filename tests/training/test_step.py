"""One update: what moves, what does not, and that neither microbatches nor devices change it."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import FREEZING, Config, Optimizer, Stage
from memjax.models import build, example
from memjax.objectives import SpecialIds
from memjax.testing import tiny_config
from memjax.training.optimizer import make_optimizer, split
from memjax.training.step import Metrics, TrainState, train_step

IDS = SpecialIds()
# Plain gradient descent in effect: with so large an epsilon Adam's update is proportional to the
# gradient.
CONFIG = tiny_config("unused", optimizer=Optimizer(epsilon=1e3))
COMBINED = dataclasses.replace(
    CONFIG.stages["combined"],
    objectives={"next_token": 0.5, "copy": 2.0},
    learning_rate=100.0,
    warmup_steps=0,
)


@functools.cache
def fresh() -> dict:
    """What training starts from, in whatever it computes."""
    module = build(CONFIG, COMBINED)
    return jax.jit(module.init)(jax.random.key(0), example(module, CONFIG))["params"]


def start(config: Config, stage: Stage) -> tuple[TrainState, functools.partial]:
    module = build(config, stage)
    params = fresh()
    trainable, frozen = split(params, stage.trainable, "trainable")
    optimizer = make_optimizer(config.optimizer, stage, trainable)
    state = TrainState(jnp.int32(0), trainable, frozen, optimizer.init(trainable))
    return state, functools.partial(
        train_step, module=module, stage=stage, optimizer=optimizer, ids=IDS
    )


@functools.cache
def compiled(microbatches: int) -> Callable[[TrainState, np.ndarray], tuple[TrainState, Metrics]]:
    """A step of `COMBINED`."""
    return jax.jit(start(CONFIG, dataclasses.replace(COMBINED, grad_accum_steps=microbatches))[1])


def rows(count: int = 8, padded: bool = True) -> np.ndarray:
    tokens = np.random.default_rng(0).integers(6, 320, (count, 32))
    if padded:
        # Rows of unequal true length, so that a mean of means is not the mean.
        for row, real in enumerate(np.linspace(4, 32, count).astype(int)):
            tokens[row, real:] = IDS.pad
    return tokens.astype(np.int32)


def close(a: object, b: object, tolerance: float = 2e-6) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=tolerance), a, b)


@pytest.mark.quick_cases(slow=("2", "8"))
@pytest.mark.parametrize("microbatches", [2, 4, 8])
def test_microbatches_give_the_gradient_of_the_whole_batch(microbatches: int) -> None:
    state, _ = start(CONFIG, COMBINED)
    results = [compiled(count)(state, rows()) for count in (1, microbatches)]
    close(results[0][1], results[1][1])
    close(results[0][0].trainable, results[1][0].trainable)


def test_loss_is_the_weighted_sum_of_token_means() -> None:
    _, metrics = compiled(1)(start(CONFIG, COMBINED)[0], rows())
    terms = metrics.terms
    expected = (
        0.5 * terms["next_token"].nats / terms["next_token"].count
        + 2.0 * terms["copy"].nats / terms["copy"].count
    )
    np.testing.assert_allclose(metrics.loss, expected, rtol=1e-6)
    assert terms["next_token"].count == (rows() != IDS.pad).sum()
    assert terms["copy"].count == (rows()[:, :16] != IDS.pad).sum()


def test_frozen_parameters_keep_their_bytes_and_have_no_optimizer_state() -> None:
    state, _ = start(CONFIG, COMBINED)
    assert set(state.frozen) == {"encoder"} and "encoder" not in state.trainable
    frozen_before = jax.tree.map(np.asarray, state.frozen)
    table = state.frozen["encoder"]["embed"]["embedding"]
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * sum(
        leaf.size for leaf in jax.tree.leaves(state.trainable)
    )
    before = jax.tree.map(np.asarray, state.trainable)
    for _ in range(20):
        state, _ = compiled(1)(state, rows())
    jax.tree.map(np.testing.assert_array_equal, state.frozen, frozen_before)
    assert table.shape == (320, 16)
    moved = jax.tree.map(lambda a, b: bool(np.any(np.asarray(a) != b)), state.trainable, before)
    assert all(jax.tree.leaves(moved)), moved


def test_a_frozen_encoder_is_left_out_of_the_backward_pass() -> None:
    def matrix_products(stage: Stage) -> int:
        state, step = start(CONFIG, stage)
        return str(jax.make_jaxpr(step)(state, rows())).count("dot_general")

    frozen = matrix_products(dataclasses.replace(COMBINED, trainable=FREEZING["frozen_all"]))
    trained = matrix_products(dataclasses.replace(COMBINED, trainable=((".*", True),)))
    # The encoder's block has 6 products (mixing, in and out, up and down, read-out none): each
    # costs two more when trained.
    assert trained - frozen >= 8


@pytest.mark.slow
def test_bfloat16_compute_keeps_float32_parameters_and_nearly_the_loss() -> None:
    losses = {}
    for dtype in ("float32", "bfloat16"):
        config = dataclasses.replace(
            CONFIG, model=dataclasses.replace(CONFIG.model, dtype=dtype, remat="dots_saveable")
        )
        state, step = start(config, COMBINED)
        state, metrics = jax.jit(step)(state, rows())
        assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
        losses[dtype] = float(metrics.loss)
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    assert losses["bfloat16"] != losses["float32"]
