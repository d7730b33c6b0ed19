"""AutoCompressor and Memo: what a write appends, what it equals, and segments of random length."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Model
from memjax.models.encoder import EMBEDDING_INIT
from memjax.models.memory import VALID, VECTORS
from memjax.models.memory_model import MemoryModel
from memjax.models.peers.auto_compressor import AutoCompressor, Memo, cut_segments
from memjax.models.peers.rmt import STATE, RecurrentMemoryTransformer
from memjax.models.request import next_chunks

BATCH, CHUNKS, LENGTH, VOCABULARY = 2, 4, 4, 24
STACK = Backbone(width=16, layers=2, heads=2, mlp_ratio=1)
MODEL = Model(chunk_length=LENGTH, decoder=STACK, encoder=STACK)
# Every chunk has tokens of its own, so that the gradient at the table is that of one chunk.
TOKENS = 6 + np.tile(np.arange(CHUNKS * LENGTH).reshape(CHUNKS, LENGTH), (BATCH, 1, 1))
TOKENS[1] = TOKENS[1, :, ::-1]
REAL = np.ones(TOKENS.shape, bool)


def build(kind=AutoCompressor, model=MODEL, **dials):
    settings = dataclasses.replace(kind.dials, **{"vectors": 2, **dials})
    return kind(model, CHUNKS, VOCABULARY, dials=settings)


def decoded(model, tokens):
    """States of all chunks, and the states of the memory before them."""
    prefixes = model.written(tokens, jnp.ones(tokens.shape, bool), np.arange(CHUNKS))
    request = next_chunks(tokens, tokens)
    return model.hidden(prefixes, request), prefixes.leaves


def show(module, variables, quick, tokens=TOKENS, rngs=None):
    program = quick(lambda v, t, r: module.apply(v, t, method=decoded, rngs=r))
    return program(variables, tokens, rngs)


@pytest.mark.slow
def test_a_write_appends(draw, quick):
    """B.17 (1): the entries before stay, bit by bit, until the state is full; then they move."""
    module = build(kept=2)
    _, leaves = show(module, draw(module, TOKENS), quick)
    vectors = leaves[VECTORS]
    assert leaves[VALID][0].sum(axis=1).tolist() == [0, 1, 2, 2, 2]
    assert np.array_equal(vectors[:, 1, 0], vectors[:, 2, 0])
    assert np.array_equal(vectors[:, 2, 1], vectors[:, 3, 0])
    assert vectors.shape[2:] == (2, 2, 16)  # B.17 (5): as large after any number of chunks


def reach(module, variables, quick, chunk=3):
    """Whether the scores of a chunk have a gradient at the tokens of each chunk."""

    def total(variables, tokens):
        return module.apply(variables, tokens, method=decoded)[0][:, chunk, 0].sum()

    table = quick(jax.grad(total))(variables, TOKENS)["params"]["embed"]["embedding"]
    return [bool(table[TOKENS[0, c, 1:]].any()) for c in range(chunk)]


@pytest.mark.slow
def test_truncation_cuts_the_state_that_enters_every_second_chunk(draw, quick):
    """B.17 (2), T8. Without the cut, the same gradients are not 0: a dead cut would be found."""
    module, alive = build(), build(model=dataclasses.replace(MODEL, bptt_chunks=2))
    variables = draw(module, TOKENS)
    assert reach(alive, variables, quick) == [False, False, True]
    assert reach(module, variables, quick) == [True, True, True]


@pytest.mark.slow
def test_without_vectors_chunks_are_independent(draw, quick):
    """B.17 (3)."""
    module = build(vectors=0)
    variables = draw(module, TOKENS)
    other = TOKENS.copy()
    other[:, 1] = 7
    one, two = (show(module, variables, quick, tokens)[0] for tokens in (TOKENS, other))
    assert np.array_equal(one[:, 2:], two[:, 2:])


class LearnedQueries(RecurrentMemoryTransformer):
    """RMT whose write rows are learned, not a copy of the state."""

    def setup(self):
        super().setup()
        shape = self.dials.vectors, self.config.decoder.width
        self.summary_tokens = self.param("summary_tokens", EMBEDDING_INIT, shape)

    def update(self, leaves, tokens, valid):
        x = self.embed_tokens(tokens, valid)
        asked = jnp.broadcast_to(self.summary_tokens, (len(x), *self.summary_tokens.shape))
        seen = jnp.pad(valid, ((0, 0), (0, 1)), constant_values=True)
        rows = jnp.concatenate([x, asked], axis=1)
        return {STATE: self.read_rows(leaves[STATE], None, rows, seen)[:, -1:]}


@pytest.mark.slow
def test_the_newest_summary_alone_is_rmt_with_learned_queries(draw, quick):
    """A.8, from a state that holds one summary; one vector, whose block needs no mask."""
    ours, theirs = build(kept=1, vectors=1), build(LearnedQueries, vectors=1)
    variables = draw(theirs, TOKENS)
    params = dict(variables["params"])
    first = params.pop("first")

    def write(model, tokens, leaf):
        state = model.empty(BATCH)
        shape = state.leaves[leaf].shape
        held = {leaf: jnp.broadcast_to(first, shape)}
        held |= {VALID: jnp.ones((BATCH, 1), bool)} if leaf == VECTORS else {}
        state = model.fold(tokens, state=state.replace(leaves=held))
        x = jnp.ones((BATCH, LENGTH, 16))
        leaves = {name: x[:, -1] for name, x in state.leaves.items()}
        return state.leaves[leaf], model.read(leaves, x, tokens[:, 0], REAL[:, 0])

    one, read = quick(lambda t: ours.apply({"params": params}, t, VECTORS, method=write))(TOKENS)
    two, same = quick(lambda t: theirs.apply(variables, t, STATE, method=write))(TOKENS)
    np.testing.assert_allclose(one[:, :, 0], two, atol=1e-5)
    np.testing.assert_allclose(read, same, atol=1e-5)


@pytest.mark.slow
def test_a_writer_without_earlier_summaries_writes_in_one_call(draw, quick):
    """B.17 (6)."""
    module = build(reads_summaries=False)
    variables = draw(module, TOKENS)

    def at_once(model, tokens):
        chunks = tokens.reshape(-1, LENGTH)
        new = model.summarise(model.start(len(chunks)), chunks, jnp.ones(chunks.shape, bool))
        return new.reshape(BATCH, CHUNKS, *new.shape[1:])

    new = quick(lambda v, t: module.apply(v, t, method=at_once))(variables, TOKENS)
    _, leaves = show(module, variables, quick)
    np.testing.assert_allclose(leaves[VECTORS][:, 3], new[:, :3], atol=1e-5)
    # The ablated sight matters: with it, the same weights write otherwise behind the first chunk.
    _, other = show(build(), variables, quick)
    assert np.abs(other[VECTORS][:, 3, 1:] - new[:, 1:3]).max() > 1e-2


@pytest.mark.slow
def test_a_writer_without_earlier_summaries_is_the_memory_model(draw, quick):
    """A.8: with one backbone for both, `memory_tokens`, and no marks."""
    module = build(reads_summaries=False)
    params = dict(draw(module, TOKENS)["params"])
    summary_tokens = params.pop("summary_tokens")
    # The encoder adds no position to a token.
    for name in ("token_position", "chunk_position", "task_mark"):
        params[name] = jnp.zeros_like(params[name])
    variables = {"params": {**params, "summary_tokens": summary_tokens}}
    config = dataclasses.replace(
        MODEL,
        memory_vectors=2,
        readout="memory_tokens",
        layout="variable",
        token_positions=False,
        chunk_positions=False,
        task_embedding=False,
    )
    encoder = {name: params[name] for name in ("embed", "backbone")}
    decoder = {name: params[name] for name in ("embed", "backbone", "head")}
    theirs = {"params": {**decoder, "encoder": {**encoder, "memory_tokens": summary_tokens}}}
    memory_model = MemoryModel(config, CHUNKS, VOCABULARY)
    logits = quick(lambda v, t: memory_model.apply(v, t))(theirs, TOKENS)
    ours = quick(lambda v, t: module.apply(v, t))(variables, TOKENS)
    np.testing.assert_allclose(ours, logits, atol=1e-5)


def test_segments_hold_every_token_once_and_none_of_a_later_chunk(quick):
    back = np.random.default_rng(1).integers(0, 3, (BATCH, CHUNKS))
    back[:, -1] = 0
    tokens, inside = quick(lambda t, v, b: cut_segments(t, v, b, 2))(TOKENS, REAL, back)
    lengths = LENGTH - np.diff(back, prepend=0)
    assert np.array_equal(inside.sum(axis=2), lengths)
    for row in range(BATCH):
        assert tokens[row][inside[row]].tolist() == TOKENS[row].ravel().tolist()
    for chunk in range(CHUNKS):
        held = set(tokens[:, chunk][inside[:, chunk]].tolist())
        assert not held & set(TOKENS[:, chunk + 1 :].ravel().tolist())


@pytest.mark.slow
def test_memo_draws_lengths_with_a_generator_alone(draw, quick):
    """A.8: without one it is an AutoCompressor, bit by bit."""
    memo, plain = build(Memo, jitter=0.5), build()
    variables = draw(plain, TOKENS)
    hidden, _ = show(memo, variables, quick)
    assert np.array_equal(hidden, show(plain, variables, quick)[0])
    rngs, other = {"memory": jax.random.key(3)}, TOKENS.copy()
    other[:, 2] = 7
    program = quick(lambda v, t: memo.apply(v, t, method=decoded, rngs=rngs)[0])
    one, two = program(variables, TOKENS), program(variables, other)
    assert not np.array_equal(one, hidden)
    assert np.array_equal(one[:, :2], two[:, :2])


class LooksAhead(AutoCompressor):
    """A fault: a chunk is decoded behind its own summary."""

    def seen(self, prefixes, visible):
        return super().seen(prefixes, visible + 1)


@pytest.mark.slow
def test_the_common_test_finds_a_chunk_that_reads_itself(draw, quick):
    module, other = build(LooksAhead), TOKENS.copy()
    variables = draw(module, TOKENS)
    other[:, 2, -1] = 7  # the last input, which no score of the others may read
    one, two = (show(module, variables, quick, tokens)[0] for tokens in (TOKENS, other))
    assert not np.array_equal(one[:, 2, :-1], two[:, 2, :-1])
