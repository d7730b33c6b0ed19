"""Recurrent cells over tokens: what their gates do, that padding is skipped, and that a scan is a
loop. (The common tests are in test_peer.py.)"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Config, Data, Model, Stage
from memjax.models import build
from memjax.models.peers.cells import CELL, OUTPUT, SLOW

WIDTH, UNITS, BATCH, LENGTH, VOCABULARY = 6, 5, 2, 4, 12
STACK = Backbone(width=WIDTH, layers=1, heads=1)
CHUNKS = np.random.default_rng(0).integers(0, VOCABULARY, (BATCH, 3, LENGTH)).astype(np.int32)
X = np.random.default_rng(1).normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
NAMES = ("lstm", "gru", "lem")


def module_of(name, bptt=0, **dials):
    model = Model(chunk_length=LENGTH, decoder=STACK, encoder=STACK, bptt_chunks=bptt)
    data = Data(vocab_size=VOCABULARY, sequence_length=CHUNKS[0].size)
    stage = Stage(family=name, dials={"units": UNITS, **dials}, objectives={"next_token": 1.0})
    return build(Config(data=data, model=model), stage)


def state_of(name, scale=0.5):
    rng, leaves = np.random.default_rng(2), {"lstm": (OUTPUT, CELL), "lem": (OUTPUT, SLOW)}
    return {
        leaf: jnp.asarray(rng.uniform(-scale, scale, (BATCH, UNITS)), jnp.float32)
        for leaf in leaves.get(name, (OUTPUT,))
    }


def run(module, variables, state, x=X, valid=None):
    valid = np.ones(x.shape[:2], bool) if valid is None else valid
    return module.apply(variables, state, x, valid, method="run")


def with_cell(variables, **changes):
    """Variables in which the cell's bias, or all of its matrices, have other values."""
    cell = dict(variables["params"]["cell"])
    return {"params": {**variables["params"], "cell": {**cell, **changes}}}


def bias_of(*gates):
    return jnp.repeat(jnp.asarray(gates, jnp.float32), UNITS)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def lstm(p, u, state):
    gates = u @ p["into"]["kernel"] + p["bias"] + state[OUTPUT] @ p["back"]["kernel"]
    i, f, o, g = np.split(gates, 4, -1)
    c = sigmoid(f + 1) * state[CELL] + sigmoid(i) * np.tanh(g)
    return {OUTPUT: sigmoid(o) * np.tanh(c), CELL: c}


def gru(p, u, state):
    h, p = state[OUTPUT], p["gates"]
    r, z, new = np.split(u @ p["into"]["kernel"] + p["bias"], 3, -1)
    back_r, back_z, back = np.split(h @ p["back"]["kernel"], 3, -1)
    z = sigmoid(z + back_z)
    return {OUTPUT: z * h + (1 - z) * np.tanh(new + sigmoid(r + back_r) * back)}


def lem(p, u, state, slow):
    y, z = state[OUTPUT], state[SLOW]
    step_y, step_z, new_z, new_y = np.split(u @ p["into"]["kernel"] + p["bias"], 4, -1)
    back_y, back_z, back = np.split(y @ p["back"]["kernel"], 3, -1)
    d_y, d_z = sigmoid(step_y + back_y), sigmoid(step_z + back_z)
    z = (1 - d_z) * z + d_z * np.tanh(new_z + back)
    return {OUTPUT: (1 - d_y) * y + d_y * np.tanh(new_y + z @ slow), SLOW: z}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_scan_is_a_loop_of_the_equations(name, draw):
    module = module_of(name)
    variables, state = draw(module, CHUNKS), state_of(name)
    last, out = run(module, variables, state)
    weights, rest = jax.device_get(variables)["params"], {}
    if name == "lem":
        rest["slow"] = weights["slow"]["kernel"]
    step = {"lstm": lstm, "gru": gru, "lem": lem}[name]
    for at in range(LENGTH):
        state = step(weights["cell"], X[:, at], state, **rest)
        np.testing.assert_allclose(out[:, at], state[OUTPUT], atol=1e-5)
    for leaf, value in state.items():
        np.testing.assert_allclose(last[leaf], value, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_padding_within_a_chunk_is_skipped(name, draw):
    module = module_of(name)
    variables, state = draw(module, CHUNKS), state_of(name)
    real = np.array([[True, False, True, False]] * BATCH)
    one, outs = run(module, variables, state, valid=real)
    other, short = run(module, variables, state, X[:, ::2])
    for leaf in state:
        np.testing.assert_array_equal(one[leaf], other[leaf])
    np.testing.assert_array_equal(outs[:, ::2], short)


@pytest.mark.slow
def test_open_and_closed_gates_keep_the_state(draw):
    """An LSTM with a closed write gate keeps c, and a GRU with a full keep gate keeps h."""
    for name, bias, leaf in (("lstm", (-60, 60, 0, 0), CELL), ("gru", (0, 60, 0), OUTPUT)):
        module = module_of(name)
        variables, state = draw(module, CHUNKS), state_of(name)
        cell = variables["params"]["cell"]
        if name == "gru":
            changed = with_cell(variables, gates={**cell["gates"], "bias": bias_of(*bias)})
        else:
            changed = with_cell(variables, bias=bias_of(*bias))
        np.testing.assert_allclose(run(module, changed, state)[0][leaf], state[leaf], atol=1e-6)
        assert not np.allclose(run(module, variables, state)[0][leaf], state[leaf], atol=1e-2)


def test_steps_of_no_length_leave_lem_as_it_is(draw):
    module, state = module_of("lem", step=0.0), state_of("lem")
    last, _ = run(module, draw(module, CHUNKS), state)
    for leaf in (OUTPUT, SLOW):
        np.testing.assert_array_equal(last[leaf], state[leaf])


def test_full_steps_make_lem_two_plain_layers(draw):
    module, state = module_of("lem"), state_of("lem")
    variables = with_cell(draw(module, CHUNKS), bias=bias_of(60, 60, 0.3, -0.2))
    last, _ = run(module, variables, state, X[:, :1])
    weights = jax.device_get(variables)["params"]
    _, _, new_z, new_y = np.split(X[:, 0] @ weights["cell"]["into"]["kernel"], 4, -1)
    back = np.split(state[OUTPUT] @ weights["cell"]["back"]["kernel"], 3, -1)[2]
    z = np.tanh(new_z + 0.3 + back)
    np.testing.assert_allclose(last[SLOW], z, atol=1e-5)
    y = np.tanh(new_y - 0.2 + z @ weights["slow"]["kernel"])
    np.testing.assert_allclose(last[OUTPUT], y, atol=1e-5)


@pytest.mark.slow
def test_lem_is_bounded_and_its_gradient_reaches_a_far_token(draw, quick):
    """Of 2000 tokens, the first one has a finite gradient that is not 0."""
    module = module_of("lem", step=0.0242)
    variables = draw(module, CHUNKS)
    x = np.random.default_rng(3).normal(size=(1, 2000, WIDTH)).astype(np.float32)
    state = {leaf: jnp.zeros((1, UNITS)) for leaf in (OUTPUT, SLOW)}

    def end(x):
        last, out = run(module, variables, state, x, np.ones(x.shape[:2], bool))
        return last[OUTPUT].sum(), (out, last[SLOW])

    grad, (out, slow) = quick(jax.grad(end, has_aux=True))(x)
    assert max(np.abs(out).max(), np.abs(slow).max()) <= 1
    assert np.isfinite(grad).all()
    assert np.abs(grad[0, 0]).max() > 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_a_cut_stops_the_gradient_of_earlier_chunks(name, draw, quick):
    """T8: with a cut before every chunk, the last state has no gradient at the first one."""

    def reach(bptt):
        module = module_of(name, bptt)
        variables, state = draw(module, CHUNKS), state_of(name)

        def end(leaves):
            start = module.apply(variables, BATCH, method="empty")
            states = module.apply(
                variables, CHUNKS, None, start.replace(leaves=leaves), method="fold"
            )
            return sum(leaf[:, -1].sum() for leaf in states.leaves.values())

        grad = quick(jax.grad(end))(state)
        return max(np.abs(leaf).max() for leaf in grad.values())

    assert reach(1) == 0 < reach(0)
