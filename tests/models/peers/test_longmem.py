"""LongMem: a side network that reads keys and values of a frozen language model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from memjax.config import Backbone, Model, match_rules
from memjax.layers import make_backbone
from memjax.models.memory import VALID
from memjax.models.peers import PEERS
from memjax.models.peers.far_attention import Far
from memjax.models.peers.longmem import LongMem, LongMemDials
from memjax.models.peers.peer import MASKED
from memjax.models.peers.raw_kv import KEY, VALUE, TokenReader
from memjax.models.request import next_chunks

RNG = np.random.default_rng(5)
BATCH, CHUNKS, LENGTH, VOCABULARY = 2, 3, 4, 24
STACK = Backbone(width=16, layers=4, heads=2, mlp_ratio=1)
MODEL = Model(chunk_length=LENGTH, decoder=STACK)
TOKENS = RNG.integers(6, VOCABULARY, (BATCH, CHUNKS, LENGTH)).astype(np.int32)
REAL = np.ones((BATCH, LENGTH), bool)


def make(kind=LongMem, **dials):
    return kind(MODEL, CHUNKS, VOCABULARY, dials=LongMemDials(**{"most": 4, "unit": 2, **dials}))


@pytest.fixture(scope="module")
def variables(draw):
    return draw(make(), TOKENS)


def hidden_of(module, variables, quick):
    """States of all chunks from those before, compiled."""

    def run(tokens):
        def hidden(model):
            return model.hidden(model.fold(tokens[:, :-1]), next_chunks(tokens, tokens))

        return module.apply(variables, method=hidden)

    return quick(run)


@pytest.mark.slow
def test_a_side_network_begins_as_the_language_model(variables, quick):
    """With outputs of 0, whatever is stored, the sum of changes is the language model's state."""
    module = make()
    flat = flatten_dict(variables["params"])
    assert {path[0] for path in flat} >= {"side_0", "side_1"}
    assert "side_2" not in {path[0] for path in flat}
    first = quick(lambda key: module.init(key, TOKENS))(jax.random.key(0))["params"]
    for number in range(2):
        for part in ("mix/out", "mlp/down"):
            assert not flatten_dict(first[f"side_{number}"], sep="/")[f"{part}/kernel"].any()

    def both(params):
        def run(model):
            x = model.embed_tokens(TOKENS[:, 2], REAL)
            leaves = model.fold(TOKENS[:, :2]).leaves
            return model.read(leaves, x, TOKENS[:, 2], REAL), x

        states, x = module.apply({"params": params}, method=run)
        plain = make_backbone(MODEL, STACK, LENGTH)
        return states, plain.apply({"params": params["backbone"]}, x)

    silent = {
        name: jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf * 0 if {"out", "down"} & {p.key for p in path} else leaf, part
        )
        if name.startswith("side")
        else part
        for name, part in variables["params"].items()
    }
    states, plain = quick(both)(silent)
    np.testing.assert_allclose(states, plain, atol=1e-5)


@pytest.mark.slow
def test_a_closed_gate_leaves_the_window_alone(variables, quick):
    """B.23 (1) and T10."""
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 0 - 30.0 if "far_gate" in str(path) else leaf,
        variables["params"],
    )
    one, other = (
        hidden_of(module, {"params": params}, quick)(TOKENS)
        for module in (make(), make().clone(memory=False))
    )
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_neighbours_are_retrieved_as_one(quick):
    """By their mean key, where an empty row counts for nothing; the last unit may be smaller."""
    reader = TokenReader(STACK, jnp.float32, rows=3, most=2, unit=2)
    there = np.array([[True, True, True, True, False, False]])
    key = np.zeros((1, 6, 1, 2), np.float32)
    key[0, :, 0, 0] = [4, 0, 1, 3, MASKED, 9]
    far = Far(key, key, there)
    query = np.array([[[[1.0, 0.0]], [[-1.0, 0.0]]]], np.float32)
    found = quick(lambda: reader.apply({}, query, key, far, there[:, :2], method="chosen"))()
    assert found[0, 0].tolist() == [
        [False, False, False, True, True, False],
        [False, False, True, False, False, False],
    ]


class SharedRows(LongMem):
    """A faulty bank, as published: sequences read the rows of one another."""

    def far(self, leaves):
        far = super().far(leaves)
        return jax.tree.map(lambda x: jnp.concatenate([x, jnp.roll(x, 1, axis=0)], axis=1), far)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [LongMem, SharedRows])
def test_rows_of_another_sequence_would_be_seen(variables, quick, kind):
    """B.23 (8) and T9."""
    run, other = hidden_of(make(kind), variables, quick), TOKENS.copy()
    other[1] = np.where(other[1] == 7, 8, 7)
    assert np.array_equal(run(TOKENS)[0], run(other)[0]) == (kind is LongMem)


@pytest.mark.slow
def test_the_language_model_writes_and_is_frozen(variables, quick):
    """What is stored depends on no weight of the side network, and never becomes stale."""
    kept = {
        path: match_rules(PEERS["longmem"].trainable, "/".join(path), "trainable")
        for path in flatten_dict(variables["params"])
    }
    for path, trained in kept.items():
        assert trained == (path[0] not in ("embed", "backbone", "head"))
    write = quick(
        lambda params: make().apply({"params": params}, TOKENS[:, 0], REAL, method="encode")
    )
    flat = flatten_dict(variables["params"])
    moved = unflatten_dict({path: leaf + kept[path] for path, leaf in flat.items()})
    one, other = write(variables["params"]), write(moved)
    for name in (KEY, VALUE):
        assert np.array_equal(one[name], other[name])
    assert VALID not in one
