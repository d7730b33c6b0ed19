"""What reaches what in a stack, by gradients that are exactly zero and by outputs that do not
change at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone as Settings
from memjax.layers import Backbone

LENGTH, WIDTH = 5, 8


def mixer(kernel, heads, norm, mlp, gate=False):
    return Settings(
        kind="mixer",
        width=WIDTH,
        layers=2,
        heads=heads,
        channel_kernel=kernel,
        norm=norm,
        mlp=mlp,
        output_gate=gate,
    )


def transformer(norm, mlp, gate, kv_heads=0):
    return Settings(
        width=WIDTH, layers=2, heads=4, kv_heads=kv_heads, norm=norm, mlp=mlp, output_gate=gate
    )


# Every kernel with and without heads; among them, and among the transformers, every pair of norm,
# MLP and gate.
STACKS = {
    "flat-1": mixer(1, 0, "layer", "gelu"),
    "flat-2": mixer(2, 0, "rms", "swiglu"),
    "flat-4": mixer(4, 0, "layer", "swiglu"),
    "flat-8": mixer(8, 0, "rms", "gelu"),
    "heads-1": mixer(1, 4, "rms", "gelu", gate=True),
    "heads-2": mixer(2, 4, "layer", "gelu"),
    "heads-4": mixer(4, 4, "layer", "swiglu", gate=True),
    "heads-8": mixer(8, 4, "rms", "swiglu"),
    "transformer-rms-swiglu-gate": transformer("rms", "swiglu", True),
    "transformer-rms-gelu": transformer("rms", "gelu", False, kv_heads=1),
    "transformer-layer-gelu-gate": transformer("layer", "gelu", True, kv_heads=2),
    "transformer-layer-swiglu": transformer("layer", "swiglu", False),
}


SLOW = (
    "flat-2",
    "flat-8",
    "heads-1",
    "heads-4",
    "transformer-rms-gelu",
    "transformer-layer-swiglu",
)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in STACKS
    ],
)
def run(request, quick, draw):
    """(x, valid) to the outputs [T, D] and to [T, S]: how much the output at t moves with the input
    at s."""
    module = Backbone(STACKS[request.param], LENGTH)
    variables = draw(module, np.zeros((1, LENGTH, WIDTH), np.float32))
    direction = np.random.default_rng(1).normal(size=WIDTH).astype(np.float32)
    # One copy of the row for each output: copy t's gradient is that of output t alone.
    one_output = np.eye(LENGTH, dtype=np.float32)[..., None] * direction

    @quick
    def outputs_and_reach(x, valid):
        def probe(copies):
            y = module.apply(variables, copies, None, jnp.broadcast_to(valid, (LENGTH, LENGTH)))
            return jnp.sum(y * one_output), y[0]

        gradient, y = jax.grad(probe, has_aux=True)(jnp.broadcast_to(x, (LENGTH, LENGTH, WIDTH)))
        return y, abs(gradient).sum(-1)

    return outputs_and_reach


@pytest.fixture
def x():
    return np.random.default_rng(2).normal(size=(1, LENGTH, WIDTH)).astype(np.float32)


def test_an_output_depends_on_all_earlier_inputs_and_on_no_later_one(run, x):
    _, reach = run(x, np.ones((1, LENGTH), bool))
    assert np.all(np.triu(reach, 1) == 0)
    assert np.all(reach[np.tril_indices(LENGTH)] > 0)


@pytest.mark.parametrize("valid", [[0, 1, 1, 1, 1], [1, 0, 1, 0, 1], [0, 0, 1, 1, 0]], ids=str)
def test_a_masked_input_reaches_no_valid_output(run, x, valid):
    valid = np.array(valid, bool)
    before, reach = run(x, valid[None])
    after, _ = run(np.where(valid[None, :, None], x, 100 * x + 7), valid[None])
    assert np.all(reach[valid][:, ~valid] == 0)
    assert np.array_equal(before[valid], after[valid])
    assert np.all(before[~valid] != after[~valid])
    seen = reach[np.ix_(valid, valid)]
    assert np.all(seen[np.tril_indices(len(seen))] > 0)
