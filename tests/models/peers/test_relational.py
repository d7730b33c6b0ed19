"""The relational memory core: its equations, its gate, and the slots as a set. (The common tests
are in test_peer.py.)"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Config, ConfigError, Data, Model, Stage
from memjax.models import build
from memjax.models.peers.relational import STATE

BATCH, LENGTH, SLOTS, HEADS, HEAD_WIDTH, VOCABULARY = 2, 4, 3, 2, 4, 12
WIDTH = HEADS * HEAD_WIDTH
STACK = Backbone(width=8, layers=1, heads=1)
CHUNKS = np.random.default_rng(0).integers(0, VOCABULARY, (BATCH, 2, LENGTH)).astype(np.int32)
X = np.random.default_rng(1).normal(size=(BATCH, LENGTH, 8)).astype(np.float32)
REAL = np.ones((BATCH, LENGTH), bool)
SIZES = {"slots": SLOTS, "heads": HEADS, "head_width": HEAD_WIDTH}
STATES = np.random.default_rng(2).normal(size=(BATCH, SLOTS, WIDTH)).astype(np.float32)


def module_of(**dials):
    model = Model(chunk_length=LENGTH, decoder=STACK, encoder=STACK)
    data = Data(vocab_size=VOCABULARY, sequence_length=CHUNKS[0].size)
    stage = Stage(family="rmc", dials={**SIZES, **dials}, objectives={"next_token": 1.0})
    return build(Config(data=data, model=model), stage)


def run(module, variables, states=STATES, x=X):
    state = {STATE: jnp.asarray(states)}
    last, out = module.apply(variables, state, x, REAL[:, : x.shape[1]], method="run")
    return last[STATE], out


def norm(x, weights):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return x * weights["scale"] + weights["bias"]


def linear(x, weights):
    return x @ weights["kernel"] + weights.get("bias", 0)


@pytest.mark.slow
def test_one_head_without_gate_and_mlp_is_one_attention_layer(draw):
    """M' = LN(M + Att), softmax(q k / sqrt(F)) v over the slots and the input."""
    module = module_of(heads=1, head_width=WIDTH, mlp_layers=0, gate="none")
    variables = draw(module, CHUNKS)
    weights = jax.device_get(variables)["params"]
    last, _ = run(module, variables, x=X[:, :1])
    rows = np.concatenate([STATES, linear(X[:, :1], weights["into"])], axis=1)
    query, key, value = np.split(norm(linear(rows, weights["maps"]), weights["maps_norm"]), 3, -1)
    scores = np.einsum("nsf,ntf->nst", query[:, :SLOTS], key) / np.sqrt(WIDTH)
    chosen = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = norm(STATES + chosen @ value, weights["mixed_norm"])
    np.testing.assert_allclose(last, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("gate", ["unit", "memory"])
def test_gates_that_keep_all_leave_the_state(gate, draw):
    module = module_of(gate=gate)
    variables = draw(module, CHUNKS)
    weights = variables["params"]["gate"]
    count = WIDTH if gate == "unit" else 1
    given = {
        "kernel": weights["given"]["kernel"] * 0,
        "bias": jnp.repeat(jnp.array([-30.0, 30.0]), count),
    }
    kept = {"kernel": weights["kept"]["kernel"] * 0}
    closed = {"params": {**variables["params"], "gate": {"given": given, "kept": kept}}}
    np.testing.assert_allclose(run(module, closed)[0], STATES, atol=1e-6)
    assert not np.allclose(run(module, variables)[0], STATES, atol=0.1)


@pytest.mark.slow
def test_the_gate_is_the_published_mixture(draw):
    module = module_of(mlp_layers=0)
    variables = draw(module, CHUNKS)
    weights = jax.device_get(variables)["params"]
    free = module_of(mlp_layers=0, gate="none")
    new, _ = run(free, variables, x=X[:, :1])
    given = linear(linear(X[:, 0], weights["into"]), weights["gate"]["given"])[:, None]
    gates = given + linear(np.tanh(STATES), weights["gate"]["kept"])
    write, keep = np.split(1 / (1 + np.exp(-(gates + np.repeat([0, 1], WIDTH)))), 2, -1)
    expected = write * np.tanh(new) + keep * STATES
    np.testing.assert_allclose(run(module, variables, x=X[:, :1])[0], expected, atol=1e-5)


@pytest.mark.slow
def test_slots_are_a_set(draw):
    """Permuted slots give permuted slots, and the output is all of them in their order."""
    module = module_of()
    variables, order = draw(module, CHUNKS), [2, 0, 1]
    last, out = run(module, variables)
    other, _ = run(module, variables, STATES[:, order])
    np.testing.assert_allclose(other, last[:, order], atol=1e-5)
    np.testing.assert_array_equal(out[:, -1].reshape(last.shape), last)
    assert last.shape == STATES.shape


@pytest.mark.slow
def test_slots_begin_apart(draw):
    """Slots that begin as the same vector stay so; the identity matrix sets them apart."""
    module = module_of()
    variables = draw(module, CHUNKS)
    first = module.apply(variables, BATCH, method="empty").leaves[STATE]
    np.testing.assert_array_equal(first[0], np.eye(SLOTS, WIDTH))
    same, _ = run(module, variables, np.broadcast_to(STATES[:, :1], STATES.shape))
    np.testing.assert_allclose(same, np.broadcast_to(same[:, :1], same.shape), atol=1e-5)
    last, _ = run(module, variables, first)
    assert np.abs(last[:, 0] - last[:, 1]).max() > 1e-3


def test_an_unknown_gate_is_an_error():
    from memjax.models.checks import check

    model = Model(chunk_length=LENGTH, decoder=STACK, encoder=STACK)
    stage = Stage(family="rmc", dials={"gate": "half"}, objectives={"next_token": 1.0})
    data = Data(vocab_size=VOCABULARY, sequence_length=CHUNKS[0].size)
    with pytest.raises(ConfigError, match="unit, memory, none"):
        check(Config(data=data, model=model, stages={"peer": stage}))
