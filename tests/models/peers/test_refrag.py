"""REFRAG: pieces of a chunk as vectors or as their tokens. The common tests are in test_peer.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Model
from memjax.models.memory import VALID, VECTORS
from memjax.models.memory_model import MemoryModel
from memjax.models.peers.refrag import EXPANDED, LENGTH, TOKENS, Dials, Refrag
from memjax.models.request import next_chunks

BATCH, CHUNKS, SIZE, VOCABULARY, PIECES = 2, 3, 8, 24, 4
SPAN = SIZE // PIECES
STACK = Backbone(width=16, layers=2, heads=2, mlp_ratio=1)
MODEL = Model(chunk_length=SIZE, decoder=STACK)
ROWS = np.random.default_rng(4).integers(6, VOCABULARY, (BATCH, CHUNKS, SIZE)).astype(np.int32)
TEXTS, REAL = ROWS[:, 0], np.ones((BATCH, SIZE), bool)


def make(kind=Refrag, **dials):
    return kind(MODEL, CHUNKS, VOCABULARY, dials=Dials(**{"vectors": PIECES, **dials}))


def decoded(model, tokens=ROWS):
    prefixes = model.written(tokens, jnp.ones(tokens.shape, bool), np.arange(CHUNKS))
    return model.hidden(prefixes, next_chunks(tokens, tokens))


@pytest.fixture(scope="module")
def variables(draw):
    """Those of any number of expanded pieces."""
    return draw(make(), ROWS)


def writer(module, variables, quick):
    return quick(lambda *args: module.apply(variables, *args, method="encode"))


@pytest.fixture(scope="module")
def write(variables, quick):
    return writer(make(), variables, quick)


@pytest.mark.slow
def test_with_every_piece_expanded_it_is_the_plain_model(variables, quick):
    """B.20 (4), A.8: one causal pass over the tokens of all chunks."""
    module = make(expanded=PIECES)

    def both(model):
        every = jnp.ones((BATCH, CHUNKS, SIZE), bool)
        before = [model.embed_tokens(ROWS[:, chunk], every[:, chunk]) for chunk in range(2)]
        marks = jnp.full(BATCH, 2, jnp.int32), jnp.zeros(BATCH, jnp.int32)
        last = model.embed_inputs(ROWS[:, 2], every[:, 2], *marks)
        plain = model.backbone(jnp.concatenate([*before, last], axis=1))
        return decoded(model)[:, 2], plain[:, 2 * SIZE :]

    found, plain = quick(lambda v: module.apply(v, method=both))(variables)
    np.testing.assert_allclose(found, plain, atol=1e-5)


@pytest.mark.slow
def test_with_no_piece_expanded_it_is_the_memory_model(variables, quick):
    """B.20 (5): one whose chunks are pieces. The first piece of a chunk is decoded behind the same
    vectors by both; the others also read tokens before them."""
    params = dict(variables["params"])
    for name in ("token_position", "chunk_position", "task_mark"):
        params[name] = jnp.zeros_like(params[name])
    # The memory model has a matrix between stacks of unlike width alone.
    params["projection"] = {"kernel": jnp.eye(16), "bias": jnp.zeros(16)}
    ours = quick(lambda v: make(expanded=0).apply(v, method=decoded))({"params": params})
    config = dataclasses.replace(
        MODEL,
        chunk_length=SPAN,
        encoder=dataclasses.replace(STACK, layers=1, causal=False),
        memory_vectors=1,
        readout="memory_tokens",
        layout="variable",
        token_positions=False,
        chunk_positions=False,
        task_embedding=False,
    )
    memory_model = MemoryModel(config, CHUNKS * PIECES, VOCABULARY)
    theirs = {name: params[name] for name in ("embed", "backbone", "head", "encoder")}
    pieces = ROWS.reshape(BATCH, CHUNKS * PIECES, SPAN)

    def run(model):
        return model.hidden(model.fold(pieces[:, :-1]), next_chunks(pieces, pieces))

    states = quick(lambda v: memory_model.apply(v, method=run))({"params": theirs})
    np.testing.assert_allclose(ours[:, :, :SPAN], states[:, ::PIECES], atol=1e-5)


@pytest.mark.slow
def test_one_more_expanded_piece_moves_no_other(variables, quick):
    """B.20 (6): what is read of the other pieces is the same and stands in the same order."""
    found = []
    for expanded in (1, 2):
        module = make(expanded=expanded)

        def run(model):
            leaves = model.fold(ROWS[:, :1]).leaves
            return leaves[EXPANDED][:, 0], *model.lay_out(leaves)

        found.append(quick(lambda v, m=module, r=run: m.apply(v, method=r))(variables))
    (few, rows, filled), (many, longer, also) = found
    assert filled.all()
    assert also.all()
    for row in range(BATCH):
        (new,) = set(many[row].tolist()) - set(few[row].tolist())
        assert set(few[row].tolist()) < set(many[row].tolist())
        lengths = [[SPAN if s in x[row] else 1 for s in range(PIECES)] for x in (few, many)]
        one, two = (np.repeat(np.arange(PIECES), x) for x in lengths)
        np.testing.assert_allclose(rows[row][one != new], longer[row][two != new], atol=1e-6)
        assert (two == new).sum() == SPAN


@pytest.mark.slow
def test_the_least_likely_pieces_are_expanded(variables, write, quick):
    """By the nats of the decoder that reads the chunk alone; the first token counts for nothing."""

    def nats(model):
        states = model.backbone(model.embed_tokens(TEXTS, REAL))
        return model.head.token_losses(states[:, :-1], TEXTS[:, 1:])[0]

    each = np.pad(quick(lambda v: make().apply(v, method=nats))(variables), ((0, 0), (1, 0)))
    mean = each.reshape(BATCH, PIECES, SPAN).sum(axis=2) / [1, *(SPAN,) * (PIECES - 1)]
    entry = write(TEXTS, REAL)
    assert entry[EXPANDED][:, 0].tolist() == mean.argmax(axis=1).tolist()
    pieces = TEXTS.reshape(BATCH, PIECES, SPAN)
    for row in range(BATCH):
        assert np.array_equal(entry[TOKENS][row, 0], pieces[row, entry[EXPANDED][row, 0]])


def test_the_control_expands_the_first_pieces(variables, quick):
    entry = writer(make(expanded=2, by_nats=False), variables, quick)(TEXTS, REAL)
    assert entry[EXPANDED].tolist() == [[0, 1]] * BATCH
    assert np.array_equal(entry[TOKENS].reshape(BATCH, -1), TEXTS[:, : 2 * SPAN])


def test_padding_takes_part_in_no_piece(variables, write, quick):
    """Neither on the right nor on the left; pieces without tokens are not expanded, nor read."""
    count = 3  # one piece and a half
    valid = np.broadcast_to(np.arange(SIZE) < count, TEXTS.shape)
    right, left = write(TEXTS, valid), write(np.roll(TEXTS, 5, axis=1), valid[:, ::-1])
    other = TEXTS.copy()
    other[:, count:] = 7
    for name, leaf in write(other, valid).items():
        if name != TOKENS:  # whose padding is not read
            assert np.array_equal(right[name], leaf)
            np.testing.assert_allclose(left[name], leaf, atol=1e-5)
    assert right[LENGTH].tolist() == [count] * BATCH
    assert (right[EXPANDED] < 2).all()
    leaves = {name: leaf[:, None] for name, leaf in right.items()} | {VALID: np.ones((2, 1), bool)}
    _, filled = quick(lambda v: make().apply(v, leaves, method="lay_out"))(variables)
    # The first piece has two tokens, the second one.
    assert filled.sum(axis=1).tolist() == [3 if x == 0 else 2 for x in right[EXPANDED][:, 0]]


@pytest.mark.slow
def test_pieces_that_do_not_divide_a_chunk(variables, quick):
    """Three pieces of at most three tokens hold all eight."""
    entry = writer(make(vectors=3, expanded=3), variables, quick)(TEXTS, REAL)
    held = entry[TOKENS].reshape(BATCH, -1)
    assert np.array_equal(held[:, :SIZE], TEXTS)
    assert VECTORS not in entry


def test_what_is_stored():
    """A vector for each piece, or the ids of its tokens."""
    none, some, every = (make(expanded=count).ledger(2) for count in (0, 1, PIECES))
    assert none == {VECTORS: (2 * PIECES * 16, 32), LENGTH: (2, 4)}
    assert some[VECTORS] == (2 * (PIECES - 1) * 16, 32)
    assert some[TOKENS] == (2 * SPAN, 5)
    assert some[EXPANDED] == (2, 2)
    assert every[TOKENS] == (2 * SIZE, 5)
    assert VECTORS not in every


@pytest.mark.slow
def test_the_choice_has_no_gradient(variables, quick):
    """Nor does any other loss through it: with nothing read, nothing is learned from it."""

    def total(variables):
        return make().apply(variables, TEXTS, REAL, method="encode")[VECTORS].sum()

    slopes = quick(jax.grad(total))(variables)["params"]
    assert any(np.any(leaf) for leaf in jax.tree.leaves(slopes["encoder"]))
    for name in ("backbone", "head", "embed"):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(slopes[name]))


class ChoosesByQuery(Refrag):
    """A fault: what is read depends on all of the chunk that is decoded."""

    def read(self, leaves, x, tokens, valid):
        rows, filled = self.lay_out(leaves)
        near = jnp.einsum("npd,nd->np", rows, x.mean(axis=1))
        nearest = near > near.mean(axis=1, keepdims=True)
        return self.read_rows(rows, filled & nearest, x, valid)


class ChoosesTogether(Refrag):
    """A fault: all chunks of a batch expand the same pieces."""

    def choose(self, score):
        return super().choose(jnp.broadcast_to(score.mean(axis=0), score.shape))


@pytest.mark.slow
def test_the_common_tests_find_a_choice_that_looks_ahead(variables, quick):
    """T2r would fail."""
    other = ROWS.copy()
    other[:, -1, 1:] = 7
    for module, sound in ((make(), True), (make(ChoosesByQuery), False)):
        program = quick(lambda t, m=module: m.apply(variables, t, method=decoded))
        one, two = program(ROWS)[:, -1, 0], program(other)[:, -1, 0]
        assert np.array_equal(one, two) == sound


@pytest.mark.slow
def test_the_common_tests_find_a_shared_choice(variables, write, quick):
    """T9 would fail."""
    faulty = writer(make(ChoosesTogether), variables, quick)
    found = []
    for program in (write, faulty):
        alone = program(TEXTS, REAL)[EXPANDED][0]
        others = (program(np.stack([TEXTS[0], text]), REAL)[EXPANDED][0] for text in ROWS[1])
        found.append(all(np.array_equal(alone, other) for other in others))
    assert found == [True, False]
