"""Gist tokens and 500xCompressor: keys and values of learned rows are all that is read of a chunk.
The common tests are in test_peer.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from memjax.config import Backbone, Model, match_rules
from memjax.models.memory import VALID
from memjax.models.peers import PEERS
from memjax.models.peers.icae import Dials as IcaeDials
from memjax.models.peers.icae import InContextAutoencoder
from memjax.models.peers.kv_memory import (
    KEY,
    RANK,
    VALUE,
    Compressor500,
    CompressorDials,
    Dials,
    Gist,
)
from memjax.models.request import next_chunks

BATCH, CHUNKS, LENGTH, VOCABULARY, ROWS = 2, 3, 4, 24, 2
LAST, SPAN = CHUNKS - 1, LENGTH + ROWS
# Four heads of queries and two of keys, which alone are stored.
STACK = Backbone(width=16, layers=2, heads=4, kv_heads=2, mlp_ratio=1)
MODEL = Model(chunk_length=LENGTH, decoder=STACK, encoder=STACK)
TOKENS = np.random.default_rng(3).integers(6, VOCABULARY, (BATCH, CHUNKS, LENGTH)).astype(np.int32)
TEXT, REAL = TOKENS[:, -1], np.ones((BATCH, LENGTH), bool)


def gist(kind=Gist, **kwargs):
    return kind(MODEL, CHUNKS, VOCABULARY, dials=Dials(vectors=ROWS), **kwargs)


def compressor(kind=Compressor500, **dials):
    return kind(MODEL, CHUNKS, VOCABULARY, dials=CompressorDials(vectors=ROWS, **dials))


def decoded(model, tokens=TOKENS):
    """States of the last chunk behind those before it."""
    prefixes = model.written(tokens, jnp.ones(tokens.shape, bool), np.arange(CHUNKS))
    return model.hidden(prefixes, next_chunks(tokens, tokens))[:, -1]


def inputs(model):
    """The last chunk as it is decoded."""
    return model.embed_inputs(
        TEXT, REAL, jnp.full(BATCH, LAST, jnp.int32), jnp.zeros(BATCH, jnp.int32)
    )


def earlier(model):
    """Text and learned rows of the chunks before the last one, as one row."""
    asked = jnp.broadcast_to(model.memory_tokens, (BATCH, ROWS, STACK.width))
    parts = [[model.embed_tokens(TOKENS[:, chunk], REAL), asked] for chunk in range(LAST)]
    return jnp.concatenate([part for both in parts for part in both], axis=1)


def in_one_pass(model, sees_gists):
    """States of the last chunk from one pass over everything, with a mask and without a store."""
    row = jnp.concatenate([earlier(model), inputs(model)], axis=1)
    at = np.arange(row.shape[1])
    chunk, is_gist = at // SPAN, at % SPAN >= LENGTH
    own = chunk[:, None] == chunk
    seen = is_gist & (chunk[:, None] == LAST) & sees_gists
    readable = jnp.asarray(np.tri(len(at), dtype=bool) & (own | seen))[None]
    positions = jnp.broadcast_to(at, row.shape[:2])
    return model.backbone(row, positions, readable)[:, LAST * SPAN :]


def with_all(model):
    """States of the last chunk that reads all keys and values of a pass over those before it, and
    those of one causal pass."""
    row, x = earlier(model), inputs(model)
    at = jnp.broadcast_to(jnp.arange(row.shape[1]), row.shape[:2])
    seen = jnp.ones(at.shape, bool)
    _, before = model.backbone.read(row, at, seen)
    behind, _ = model.read_behind(before, seen, jnp.full(BATCH, row.shape[1]), x, REAL)
    return behind, model.backbone(jnp.concatenate([row, x], axis=1))[:, LAST * SPAN :]


@pytest.fixture(scope="module")
def variables(draw):
    return draw(gist(), TOKENS)


@pytest.fixture(scope="module")
def states(variables, quick):
    """Gist tokens: the last chunk from the store, by a mask, and by one that hides all."""

    def run(model):
        return decoded(model), in_one_pass(model, True), in_one_pass(model, False)

    return quick(lambda v: gist().apply(v, method=run))(variables)


def shared(variables):
    """Weights of gist tokens without marks, and 500xCompressor's with the same in both stacks."""
    marks = ("token_position", "chunk_position", "task_mark")
    params = {**variables["params"], **{n: 0 * variables["params"][n] for n in marks}}
    theirs = {name: leaf for name, leaf in params.items() if name != "token_position"}
    return {"params": params}, {"params": {**theirs, "writer_backbone": params["backbone"]}}


@pytest.mark.slow
def test_what_is_stored_replaces_the_mask(states):
    """B.18 (1), A.8: the published pass over everything, with its mask."""
    stored, masked, blind = states
    np.testing.assert_allclose(stored, masked, atol=1e-5)
    assert np.abs(stored - blind).max() > 0.1


@pytest.mark.slow
def test_without_gists_nothing_is_read(variables, states, quick):
    """B.18 (3), T10: neither through the mask nor from entries that are not filled."""

    def run(model):
        leaves = {name: leaf + 7 for name, leaf in model.empty(BATCH).leaves.items()}
        leaves[VALID] = jnp.zeros((BATCH, LAST), bool)
        return decoded(model), model.read(leaves, inputs(model), TEXT, REAL)

    control, unfilled = quick(lambda v: gist(memory=False).apply(v, method=run))(variables)
    np.testing.assert_allclose(states[2], control, atol=1e-5)
    np.testing.assert_allclose(unfilled, control, atol=1e-6)


@pytest.mark.slow
def test_all_that_came_before_is_a_causal_model(variables, quick):
    """B.18 (4): with the keys and values of all positions, of text too."""
    behind, plain = quick(lambda v: gist().apply(v, method=with_all))(variables)
    np.testing.assert_allclose(behind, plain, atol=1e-5)


@pytest.mark.slow
def test_gists_do_not_see_earlier_chunks(variables, quick):
    """B.18 (5): an entry has no gradient at tokens of the chunk before, and one at its own."""
    tokens = 6 + np.arange(2 * LENGTH).reshape(1, 2, LENGTH)

    def total(table):
        params = {**variables["params"], "embed": {"embedding": table}}
        leaves = gist().apply({"params": params}, tokens, method="fold").leaves
        return leaves[KEY][:, 1, -1].sum()

    slope = quick(jax.grad(total))(variables["params"]["embed"]["embedding"])
    assert not slope[tokens[0, 0]].any()
    assert slope[tokens[0, 1]].any(axis=1).all()


def test_padding_of_a_chunk_is_not_stored(variables, quick):
    """Neither on the right nor on the left: the entry is that of the real tokens."""
    valid = np.broadcast_to(np.arange(LENGTH) < 3, TEXT.shape)
    encode = quick(lambda *args: gist().apply(variables, *args, method="encode"))
    right, left = encode(TEXT, valid), encode(np.roll(TEXT, 1, axis=1), valid[:, ::-1])
    for name in (KEY, VALUE):
        np.testing.assert_allclose(left[name], right[name], atol=1e-5)


class Shifted(Compressor500):
    """All positions of a read are later."""

    def places(self, filled):
        rows, first = super().places(filled)
        return rows + 11, first + 11


class KeepsRotation(Compressor500):
    """The published fault: keys stay as they were rotated when they were written."""

    def rotate_keys(self, key, positions):
        return key


@pytest.fixture(scope="module")
def compressed(variables, quick):
    """States of the last chunk by 500xCompressor, of several forms."""
    _, theirs = shared(variables)

    def run(module):
        return quick(lambda v: module.apply(v, method=decoded))(theirs)

    return run


@pytest.mark.slow
def test_gist_tokens_and_500xcompressor_are_one_form(variables, compressed, quick):
    """A.8: with one set of weights and true positions; and the mask is the third."""
    ours, _ = shared(variables)
    run = lambda model: (decoded(model), in_one_pass(model, True))  # noqa: E731
    stored, masked = quick(lambda v: gist().apply(v, method=run))(ours)
    found = compressed(compressor(true_positions=True))
    np.testing.assert_allclose(found, stored, atol=1e-5)
    np.testing.assert_allclose(found, masked, atol=1e-5)
    assert np.abs(compressed(compressor()) - found).max() > 1e-3


@pytest.mark.slow
def test_positions_count_from_anywhere(compressed):
    """B.19 (1): what is stored has no position, so that only distances matter; the published keys,
    whose rotation stays, are at other distances."""
    wanted = compressed(compressor())
    np.testing.assert_allclose(compressed(compressor(Shifted)), wanted, atol=1e-5)
    assert np.abs(compressed(compressor(KeepsRotation)) - wanted).max() > 1e-3


@pytest.mark.slow
def test_the_models_own_cache_is_read_alike(variables, quick):
    """B.19 (2): without adapters, and with memory tokens at the end of the text."""
    _, theirs = shared(variables)
    module = compressor(true_positions=True)

    def run(model):
        x, after = earlier(model)[:, :SPAN], inputs(model)
        at = jnp.broadcast_to(jnp.arange(SPAN), x.shape[:2])
        _, cache = model.backbone.read(x, at, jnp.ones(at.shape, bool))
        seen = at >= LENGTH
        own, _ = model.read_behind(cache, seen, jnp.full(BATCH, SPAN), after, REAL)
        leaves = model.fold(TOKENS[:, :1]).leaves
        return own, model.read(leaves, after, TEXT, REAL)

    own, stored = quick(lambda v: module.apply(v, method=run))(theirs)
    np.testing.assert_allclose(stored, own, atol=1e-5)


def test_the_reader_is_frozen_and_the_writer_has_adapters(variables):
    """B.19 (3)."""
    rules = PEERS["500xcompressor"].trainable
    _, theirs = shared(variables)
    found = {path: match_rules(rules, path, "") for path in flatten_dict(theirs["params"], sep="/")}
    assert {path for path, rule in found.items() if rule is True} == {
        "chunk_position",
        "memory_tokens",
        "task_mark",
    }
    assert {path for path, rule in found.items() if rule == RANK and rule is not True} == {
        f"writer_backbone/blocks/mix/{part}/kernel" for part in ("query", "value")
    }


def test_rows_hold_as_many_numbers_as_they_have_layers_and_heads():
    """B.18 (6), B.19 (4): 2 N G e numbers each, here as many as two vectors of ICAE."""
    for module in (gist(), compressor()):
        numbers = sum(count for count, _ in module.ledger(LAST).values())
        assert numbers == 2 * 2 * 2 * 4 * ROWS * LAST
        icae = InContextAutoencoder(MODEL, CHUNKS, VOCABULARY, dials=IcaeDials(2 * ROWS))
        assert numbers == sum(count for count, _ in icae.ledger(LAST).values())


@pytest.mark.slow
def test_no_gradient_is_without_a_number(variables, quick):
    """Where nothing is filled, and a chunk was of padding alone."""
    valid = np.ones(TOKENS.shape, bool)
    valid[:, 0] = False

    def total(variables):
        def run(model):
            prefixes = model.fold(TOKENS, jnp.asarray(valid))
            return (model.hidden(prefixes, next_chunks(TOKENS, TOKENS)) ** 2).sum()

        return gist().apply(variables, method=run)

    slopes = jax.tree.leaves(quick(jax.grad(total))(variables))
    assert all(np.isfinite(slope).all() for slope in slopes)


class ReadsItself(Gist):
    """A fault: a chunk is decoded behind its own gists."""

    def seen(self, prefixes, visible):
        return super().seen(prefixes, visible + 1)


@pytest.mark.slow
def test_the_common_test_finds_a_chunk_that_reads_itself(variables, quick):
    """T2 would fail: no state before the last input may depend on it."""
    other = TOKENS.copy()
    other[:, -1, -1] = 7
    for module, sound in ((gist(), True), (gist(ReadsItself), False)):
        program = quick(lambda t, m=module: m.apply(variables, t, method=decoded))
        one, two = program(TOKENS), program(other)
        assert np.array_equal(one[:, :-1], two[:, :-1]) == sound
