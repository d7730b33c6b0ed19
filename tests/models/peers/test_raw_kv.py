"""Memorizing Transformers: one layer reads its own keys and values of earlier chunks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, ConfigError, Model
from memjax.layers import Attention
from memjax.models.memory import VALID
from memjax.models.peers.far_attention import Far, highest
from memjax.models.peers.raw_kv import (
    KEY,
    VALUE,
    Dials,
    Memorizing,
    TokenReader,
    are_there,
    most_attended,
)
from memjax.models.request import next_chunks

RNG = np.random.default_rng(3)
BATCH, CHUNKS, LENGTH, VOCABULARY = 2, 3, 4, 24
STACK = Backbone(width=16, layers=2, heads=2, mlp_ratio=1)
MODEL = Model(chunk_length=LENGTH, decoder=STACK)
TOKENS = RNG.integers(6, VOCABULARY, (BATCH, CHUNKS, LENGTH)).astype(np.int32)
REAL = np.ones((BATCH, LENGTH), bool)
X = RNG.normal(size=(BATCH, 7, 16)).astype(np.float32)


def make(**dials):
    return Memorizing(MODEL, CHUNKS, VOCABULARY, dials=Dials(**{"most": 3, **dials}))


@pytest.fixture(scope="module")
def variables(draw):
    return draw(make(), TOKENS)


@pytest.fixture(scope="module")
def entries(variables, quick):
    """What one chunk writes, for any dials."""

    def encode(valid=REAL, **dials):
        module = make(**dials)
        return quick(lambda v: module.apply(v, TOKENS[:, 0], valid, method="encode"))(variables)

    return encode


@pytest.mark.slow
def test_a_closed_gate_leaves_the_window_alone(variables, quick):
    """B.23 (1) and T10."""
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * 0 - 30.0 if "far_gate" in str(path) else leaf,
        variables["params"],
    )
    scores = [
        quick(lambda p, m=module: m.apply({"params": p}, TOKENS))(params)
        for module in (make(), make().clone(memory=False))
    ]
    np.testing.assert_allclose(*scores, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("heads", "qk_norm"), [(0, False), (1, True)])
def test_all_rows_in_one_softmax_are_full_attention(draw, quick, heads, qk_norm):
    """B.23 (2) and A.8: of a position that stands where the stored ones do."""
    stack = dataclasses.replace(STACK, kv_heads=heads, qk_norm=qk_norm)
    module = TokenReader(stack, jnp.float32, rows=3, most=6)
    plain = Attention(stack, jnp.float32)
    at = np.zeros((BATCH, 7), np.int32)
    variables = draw(plain, X, at, np.ones((BATCH, 7), bool))

    def both(variables):
        _, local = module.apply(variables, X[:, :6], at[:, :6] == 0, None, method="read_far")
        far = Far(local.key, local.value, jnp.ones((BATCH, 6), bool))
        behind, _ = module.apply(variables, X[:, 6:], at[:, 6:] == 0, far, method="read_far")
        every = jnp.ones((BATCH, 7, 7), bool)
        whole, _ = plain.apply(variables, X, at, every, method="read_masked")
        return behind[:, 0], whole[:, 6]

    np.testing.assert_allclose(*quick(both)(variables), atol=1e-5)


@pytest.mark.slow
def test_a_query_reads_k_rows(draw, quick):
    """A row that no head chose has no influence, bit by bit; one that was chosen has."""
    module = TokenReader(STACK, jnp.float32, gated=True, rows=3, most=1)
    far = Far(*RNG.normal(size=(2, 1, 6, 2, 8)).astype(np.float32), np.ones((1, 6), bool))
    seen = np.ones((1, 1), bool)
    variables = draw(module, X[:1, :1], seen, far, method="read_far")
    read = quick(lambda far: module.apply(variables, X[:1, :1], seen, far, method="read_far")[0])
    first, changed = read(far), []
    for row in range(6):
        value = far.value.copy()
        value[:, row, 0] += 1
        changed.append(not np.array_equal(read(far._replace(value=value)), first))
    assert sum(changed) == 1


@pytest.mark.slow
def test_no_gradient_reaches_what_is_stored(variables, quick):
    """B.23 (7)."""

    def total(params, module):
        stored = module.apply({"params": params}, TOKENS[:, 0], REAL, method="encode")
        return sum(leaf.sum() for leaf in stored.values())

    slopes = quick(jax.grad(lambda p: total(p, make())))(variables["params"])
    assert not any(leaf.any() for leaf in jax.tree.leaves(slopes))


@pytest.mark.slow
def test_a_capped_chunk_keeps_what_its_text_attends_to(entries):
    """In order, and as they are among all rows."""
    every, two = entries(), entries(tokens=2)
    assert two[KEY].shape == two[VALUE].shape == (BATCH, 2, 2, 8)
    for name in (KEY, VALUE):
        for row in range(BATCH):
            found = [(every[name][row] == kept).all((1, 2)).argmax() for kept in two[name][row]]
            assert found == sorted(found)
            assert np.array_equal(every[name][row][found], two[name][row])
    received = jnp.asarray([[0.0, 3.0, -1.0, 2.0], [9.0, 1.0, 2.0, 3.0]])
    valid = np.array([[True] * 4, [False, False, False, True]])
    at, real = most_attended(received, valid, 2)
    assert at.tolist()[0] == [1, 3]
    assert at[1, 0] == 3
    assert real.tolist() == [[True, True], [True, False]]


@pytest.mark.slow
def test_padding_is_no_row(entries):
    """Real tokens come first, wherever they stand, and the rest is empty."""
    right = entries(REAL & (np.arange(LENGTH) < 3))
    assert are_there(right[KEY], right[VALUE]).tolist() == [[True] * 3 + [False]] * BATCH
    left = entries(REAL & (np.arange(LENGTH) > 0))
    assert are_there(left[KEY], left[VALUE]).tolist() == [[True] * 3 + [False]] * BATCH


@pytest.mark.slow
def test_of_equal_scores_the_first_are_chosen():
    scores = jnp.asarray([[1.0, 2.0, 1.0, 1.0], [3.0, 3.0, 3.0, 3.0]])
    assert highest(scores, 2).tolist() == [[True, True, False, False]] * 2
    assert highest(scores, 9).all()


class LooksAhead(TokenReader):
    """A faulty reader: all queries of a chunk choose together."""

    def chosen(self, query, key, far, valid):
        mean = jnp.broadcast_to(query.mean(axis=1, keepdims=True), query.shape)
        return super().chosen(mean, key, far, valid)


@pytest.mark.slow
@pytest.mark.parametrize("reader", [TokenReader, LooksAhead])
def test_a_choice_that_looks_ahead_is_seen(draw, quick, reader):
    """T2r: of many random texts, a later input changes what some earlier one reads."""
    module = Memorizing(MODEL, CHUNKS, VOCABULARY, dials=Dials(most=1), reader=reader)
    tokens = np.random.default_rng(4).integers(6, VOCABULARY, (16, CHUNKS, LENGTH)).astype(np.int32)
    variables = draw(module, TOKENS)

    def run(inputs):
        def hidden(model):
            prefixes = model.fold(tokens[:, :-1])
            return model.hidden(prefixes, next_chunks(inputs, tokens))

        return module.apply(variables, method=hidden)

    other = tokens.copy()
    other[:, :, 3] = np.where(other[:, :, 3] == 7, 8, 7)
    jitted = quick(run)
    same = np.array_equal(jitted(tokens)[:, :, :3], jitted(other)[:, :, :3])
    assert same == (reader is TokenReader)


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match=r"dials\.layer: 2, expected one of 2 layers"):
        _ = make(layer=2).layer


@pytest.mark.slow
def test_without_rows_a_chunk_is_read_alone(variables, quick):
    """Rows that are not there are like none at all."""

    def run(model):
        x = model.embed_tokens(TOKENS[:, 0], REAL)
        prefixes = model.fold(TOKENS[:, :2])
        leaves = {**prefixes.leaves, VALID: jnp.zeros((BATCH, 2), bool)}
        alone = {name: leaf[:, :0] for name, leaf in prefixes.leaves.items()}
        return [model.read(state, x, TOKENS[:, 0], REAL) for state in (leaves, alone)]

    np.testing.assert_allclose(*quick(lambda v: make().apply(v, method=run))(variables), atol=1e-6)
