"""InfLLM: blocks of raw keys and values, chosen by a few tokens that represent each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from memjax.config import Backbone, Model, match_rules
from memjax.layers import make_backbone
from memjax.models.peers import PEERS
from memjax.models.peers.far_attention import Far
from memjax.models.peers.raw_blocks import BlockReader, Dials, InfLLM
from memjax.models.peers.raw_kv import KEY, VALUE, are_there
from memjax.models.request import next_chunks

RNG = np.random.default_rng(6)
BATCH, CHUNKS, LENGTH, VOCABULARY = 2, 3, 4, 24
STACK = Backbone(width=16, layers=2, heads=2, mlp_ratio=1)
MODEL = Model(chunk_length=LENGTH, decoder=STACK)
TOKENS = RNG.integers(6, VOCABULARY, (BATCH, CHUNKS, LENGTH)).astype(np.int32)
REAL = np.ones((BATCH, LENGTH), bool)


def make(reader=BlockReader, **dials):
    small = {"block": 2, "representatives": 1, "most": 2, "piece": 2}
    return InfLLM(MODEL, CHUNKS, VOCABULARY, dials=Dials(**(small | dials)), reader=reader)


@pytest.fixture(scope="module")
def variables(draw):
    return draw(make(), TOKENS)


def last_states(module, variables, quick):
    """States of the last chunk, which reads two."""

    def run(model):
        x = model.embed_tokens(TOKENS[:, 2], REAL)
        return model.read(model.fold(TOKENS[:, :2]).leaves, x, TOKENS[:, 2], REAL)

    return quick(lambda v: module.apply(v, method=run))(variables)


@pytest.mark.slow
def test_a_text_within_the_window_is_plain_attention(variables, quick):
    """B.23 (3) and A.8, bit by bit."""
    module, plain = make(), make_backbone(MODEL, STACK, LENGTH)

    def both(variables):
        def run(model):
            x = model.embed_tokens(TOKENS[:, 0], REAL)
            leaves = {name: leaf[:, :0] for name, leaf in model.start(BATCH).items()}
            return model.read(leaves, x, TOKENS[:, 0], REAL), x

        states, x = module.apply(variables, method=run)
        return states, plain.apply({"params": variables["params"]["backbone"]}, x)

    assert np.array_equal(*quick(both)(variables))


class ReadsAll(BlockReader):
    """The reference: every row is read, whatever its block."""

    def chosen(self, query, key, far, valid):
        return far.there[:, None, None]


@pytest.mark.slow
def test_all_blocks_are_full_attention(variables, quick):
    """B.23 (4): with whole blocks for representatives; the choice matters with fewer."""
    full = last_states(make(ReadsAll), variables, quick)
    every = last_states(make(representatives=2, most=4), variables, quick)
    np.testing.assert_allclose(every, full, atol=1e-5)
    fewer = last_states(make(most=1), variables, quick)
    assert np.abs(fewer - full).max() > 1e-3


def choice(quick, key, number, query, **how):
    """Rows that each of two queries chooses, of one entry with one head."""
    key = np.stack([key, np.zeros(len(key))], axis=-1)[None, :, None].astype(np.float32)
    query = np.array(query, np.float32)[None, :, None, None] * np.array([1.0, 0.0], np.float32)
    there = np.ones((1, key.shape[1]), bool)
    far = Far(key, key, there, jnp.asarray(number)[None])
    how = {"representatives": 1, "most": 1, "piece": 1, "first": False, **how}
    reader = BlockReader(STACK, jnp.float32, rows=key.shape[1], entry_blocks=4, **how)
    seen = np.ones((1, query.shape[1]), bool)
    run = quick(lambda: reader.apply({}, query, key, far, seen, method="chosen"))
    return run()[0, 0].astype(int).tolist()


@pytest.mark.slow
def test_the_first_rows_of_a_block_represent_it(quick):
    """The mean of their keys is the block's, and blocks have any size."""
    key, number = [1, 9, 2, 2, 2, 0], [0, 0, 1, 1, 1, 2]
    assert choice(quick, key, number, [1.0]) == [[0, 0, 1, 1, 1, 0]]
    assert choice(quick, key, number, [1.0], representatives=2) == [[1, 1, 0, 0, 0, 0]]
    assert choice(quick, key, number, [1.0], most=2) == [[1, 1, 1, 1, 1, 0]]
    assert choice(quick, key, number, [-1.0]) == [[0, 0, 0, 0, 0, 1]]
    assert choice(quick, key, number, [-1.0], first=True) == [[1, 1, 0, 0, 0, 0]]


@pytest.mark.slow
def test_queries_before_a_token_choose_with_it(quick):
    """Their mean, over `piece` of them."""
    key, number, query = [1, 0, -1], [0, 1, 2], [3.0, -1.0, -1.0]
    high, low = [1, 0, 0], [0, 0, 1]
    assert choice(quick, key, number, query, piece=1) == [high, low, low]
    assert choice(quick, key, number, query, piece=2) == [high, high, low]
    assert choice(quick, key, number, query, piece=9) == [high, high, high]


class LooksAhead(BlockReader):
    """A faulty reader, as published: all queries of a piece choose together."""

    def asked(self, query, valid):
        return jnp.broadcast_to(query.mean(axis=1, keepdims=True), query.shape)


@pytest.mark.slow
@pytest.mark.parametrize("reader", [BlockReader, LooksAhead])
def test_a_choice_that_looks_ahead_is_seen(draw, quick, reader):
    """T2r: of many random texts, a later input changes what some earlier one reads."""
    module = make(reader, most=1, first=False, piece=LENGTH)
    tokens = np.random.default_rng(7).integers(6, VOCABULARY, (16, CHUNKS, LENGTH)).astype(np.int32)
    variables = draw(module, TOKENS)

    def run(inputs):
        def hidden(model):
            return model.hidden(model.fold(tokens[:, :-1]), next_chunks(inputs, tokens))

        return module.apply(variables, method=hidden)

    other = tokens.copy()
    other[:, :, 3] = np.where(other[:, :, 3] == 7, 8, 7)
    jitted = quick(run)
    same = np.array_equal(jitted(tokens)[:, :, :3], jitted(other)[:, :, :3])
    assert same == (reader is BlockReader)


@pytest.mark.slow
def test_each_layer_stores_representatives_first(variables, quick):
    """Blocks hold the tokens of the chunk, in the order of their scores; padding comes last."""
    module, valid = make(), REAL.copy()
    valid[1, 3] = False

    def run(model):
        _, local = model.backbone.read_far(model.embed_tokens(TOKENS[:, 0], valid), valid)
        return model.encode(TOKENS[:, 0], valid), local

    entry, local = quick(lambda v: module.apply(v, method=run))(variables)
    for layer in range(2):
        for row, block, members in ((0, 0, [0, 1]), (0, 1, [2, 3]), (1, 0, [0, 1])):
            order = sorted(members, key=lambda at: -local.received[layer, row, at])
            stored = entry[KEY][row, layer, 2 * block : 2 * block + 2]
            assert np.array_equal(stored, local.key[layer, row, order])
    there = are_there(entry[KEY], entry[VALUE])
    assert there.tolist() == [[[True] * 4] * 2, [[True, True, True, False]] * 2]


@pytest.mark.slow
def test_capped_chunks_keep_what_their_text_attends_to(variables, quick):
    """The same tokens in all layers, those with the highest mean scores."""
    module = make(tokens=1)

    def run(model):
        _, local = model.backbone.read_far(model.embed_tokens(TOKENS[:, 0], REAL), REAL)
        return model.encode(TOKENS[:, 0], REAL), local

    entry, local = quick(lambda v: module.apply(v, method=run))(variables)
    best = local.received.mean(axis=0).argmax(axis=1)
    for row in range(BATCH):
        assert np.array_equal(entry[VALUE][row, :, 0], local.value[:, row, best[row]])
    assert module.ledger(8) == dict.fromkeys((KEY, VALUE), (8 * 2 * 16, 32))


@pytest.mark.slow
def test_nothing_is_trained_but_marks_and_nothing_stored_has_a_gradient(variables, quick):
    """B.23 (7)."""
    flat = flatten_dict(variables["params"], sep="/")
    trained = {p for p in flat if match_rules(PEERS["infllm"].trainable, p, "trainable")}
    assert trained == {"chunk_position", "task_mark"}

    def total(params):
        entry = make().apply({"params": params}, TOKENS[:, 0], REAL, method="encode")
        return sum(leaf.sum() for leaf in entry.values())

    slopes = quick(jax.grad(total))(variables["params"])
    assert not any(leaf.any() for leaf in jax.tree.leaves(slopes))
