"""Hierarchical chunk attention: the choice of chunks, the attention within, and what is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from memjax.config import Backbone, Model
from memjax.layers import Linear
from memjax.models.memory import VALID
from memjax.models.peers.hcam import (
    CONTENTS,
    SUMMARY,
    ChunkReader,
    Dials,
    HierarchicalChunkMemory,
    pieces,
)
from memjax.models.peers.lamemo import sinusoids

BATCH, CHUNKS, LENGTH, VOCABULARY, WIDTH, ENTRIES = 2, 3, 4, 24, 16, 5
STACK = Backbone(width=WIDTH, layers=2, heads=2, mlp_ratio=1)
MODEL = Model(chunk_length=LENGTH, decoder=STACK)
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(6, VOCABULARY, (BATCH, CHUNKS, LENGTH)).astype(np.int32)
REAL = np.ones((BATCH, LENGTH), bool)
X = RNG.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
ALL = RNG.normal(size=(BATCH, ENTRIES, 3, WIDTH)).astype(np.float32)
SUMMARIES = RNG.normal(size=(BATCH, ENTRIES, WIDTH)).astype(np.float32)
FILLED = np.ones((BATCH, ENTRIES), bool)


class AsksWithTheChunk(HierarchicalChunkMemory):
    """A fault: all positions of a chunk ask with the mean of its states."""

    def query(self, x, valid):
        return jnp.broadcast_to(x.mean(axis=1, keepdims=True), x.shape)


class CarriesGradient(HierarchicalChunkMemory):
    """A fault: what is kept is not cut off."""

    def store(self, x):
        return x


def make(kind=HierarchicalChunkMemory, vectors=2, chosen=1):
    return kind(MODEL, CHUNKS, VOCABULARY, dials=Dials(vectors, chosen))


@pytest.fixture(scope="module")
def weights(draw):
    return draw(make(), TOKENS)


@pytest.fixture(scope="module")
def reader(draw):
    return draw(ChunkReader(STACK, jnp.float32, 1), X, ALL, SUMMARIES, FILLED)


@pytest.fixture(scope="module")
def run(reader, quick):
    """What positions take in, and how much each chunk counts, by the number of chosen chunks."""
    programs = {}
    for chosen in (1, 2, ENTRIES):
        module = ChunkReader(STACK, jnp.float32, chosen)

        def both(contents, summary, filled, module=module):
            taken = module.apply(reader, X, contents, summary, filled)
            return taken, module.apply(reader, X, summary, filled, method="weigh")

        programs[chosen] = quick(both)
    return lambda chosen, contents=ALL, summary=SUMMARIES, filled=FILLED: programs[chosen](
        contents, summary, filled
    )


def test_one_chunk_is_attention_to_its_contents(reader, run, quick):
    """The chunk then counts 1, and nothing is left to choose."""
    one = FILLED & (np.arange(ENTRIES) == 1)

    def attention():
        kernels = reader["params"]
        keys = ALL[:, 1] + sinusoids(3, WIDTH)[::-1]
        linear = {
            name: Linear(WIDTH).apply({"params": kernels[name]}, x)
            for name, x in (("query", X), ("key", keys), ("value", keys))
        }
        heads = (linear[name].reshape(BATCH, -1, 2, 8) for name in ("query", "key", "value"))
        mixed = jax.nn.dot_product_attention(*heads).reshape(X.shape)
        return Linear(WIDTH).apply({"params": kernels["out"]}, mixed)

    taken, weights = run(1, filled=one)
    np.testing.assert_array_equal(weights, np.broadcast_to(one[:, None], weights.shape))
    np.testing.assert_allclose(taken, quick(attention)(), atol=1e-5)


def test_nothing_to_remember_counts_nothing(run):
    taken, weights = run(2, filled=np.zeros_like(FILLED))
    assert not taken.any()
    assert not weights.any()


def test_a_chunk_that_is_not_chosen_is_not_read(run):
    """Other contents of it change nothing, bit by bit; those of a chosen one do."""
    taken, weights = run(2)
    assert (np.count_nonzero(weights, axis=-1) == 2).all()
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    for chunk in range(ENTRIES):
        contents = ALL.copy()
        contents[:, chunk] += 1
        other, _ = run(2, contents)
        chosen = weights[..., chunk] > 0
        assert np.array_equal((taken != other).any(axis=-1), chosen)


def test_chunks_have_no_order(run):
    order = np.array([3, 0, 4, 2, 1])
    taken, _ = run(2)
    other, _ = run(2, ALL[:, order], SUMMARIES[:, order])
    np.testing.assert_allclose(taken, other, atol=1e-6)


def test_all_chunks_chosen_is_the_sum_over_all(reader, run, quick):
    def dense():
        kernels = {name: x["kernel"] for name, x in reader["params"].items()}
        scores = (X @ kernels["chunk_query"]) @ jnp.swapaxes(SUMMARIES @ kernels["chunk_key"], 1, 2)
        weights = jax.nn.softmax(scores / WIDTH**0.5)
        module = ChunkReader(STACK, jnp.float32, 1)
        return jnp.einsum("nlm,nlmd->nld", weights, module.apply(reader, X, ALL, method="within"))

    np.testing.assert_allclose(run(ENTRIES)[0], quick(dense)(), atol=1e-5)


@pytest.mark.slow
def test_contents_are_means_of_pieces():
    valid = np.array([[1, 1, 0, 1, 1, 1], [0, 0, 0, 0, 1, 0], [0] * 6], bool)
    found = np.asarray(pieces(jnp.asarray(valid), 2))
    half, third = 1 / 2, 1 / 3
    assert found[0].tolist() == [[half, half, 0, 0, 0, 0], [0, 0, 0, *[np.float32(third)] * 3]]
    assert found[1].tolist() == [[0, 0, 0, 0, 1, 0]] * 2
    assert not found[2].any()


@pytest.mark.slow
def test_with_as_many_vectors_as_tokens_the_states_are_kept(weights, quick):
    module = make(vectors=LENGTH)

    def run(model):
        entry = model.encode(TOKENS[:, 0], REAL)
        states = model.run(None, model.embed_tokens(TOKENS[:, 0], REAL), REAL)
        return entry, states

    entry, states = quick(lambda v: module.apply(v, method=run))(weights)
    np.testing.assert_allclose(entry[CONTENTS], states, atol=1e-6)
    np.testing.assert_allclose(entry[SUMMARY], states.mean(axis=1), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "cut"), [(HierarchicalChunkMemory, True), (CarriesGradient, False)]
)
def test_what_is_kept_has_no_gradient(kind, cut, weights, quick):
    """The tokens of a stored chunk, which have rows of the token table of their own."""
    module = make(kind)
    tokens = TOKENS[:, :2] % 6 + 6 * np.arange(2)[:, None]

    def score(table):
        params = {**weights["params"], "embed": {"embedding": table}}

        def read(model):
            leaves = {x: y[:, None] for x, y in model.encode(tokens[:, 0], REAL).items()}
            leaves[VALID] = jnp.ones((BATCH, 1), bool)
            x = model.embed_tokens(tokens[:, 1], REAL)
            return model.read(leaves, x, tokens[:, 1], REAL).sum()

        return module.apply({"params": params}, method=read)

    found = quick(jax.grad(score))(weights["params"]["embed"]["embedding"])
    assert found[6:12].any()
    assert bool(found[:6].any()) is not cut


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "causal"), [(HierarchicalChunkMemory, True), (AsksWithTheChunk, False)]
)
def test_a_question_of_the_whole_chunk_is_seen(kind, causal, weights, quick):
    """T2r fails where a position asks with states behind it."""
    module = make(kind)
    leaves = {CONTENTS: ALL[:, :, :2], SUMMARY: SUMMARIES, VALID: FILLED}

    @quick
    def read(x):
        return module.apply(weights, leaves, x, TOKENS[:, 0], REAL, method="read")

    other = X.copy()
    other[:, 2] += 1
    one, two = read(X), read(other)
    assert np.array_equal(one[:, :2], two[:, :2]) is causal


PLACES, SYMBOLS, STEPS = 8, 8, 600
FIRST_DANCE, FIRST_NOISE, END = 16 + PLACES, 16 + PLACES + SYMBOLS, 16 + PLACES + 2 * SYMBOLS


def ballet(rng, batch, dances, delay):
    """Chunks of a place and a dance with chunks of noise behind each, a dance, and its place."""
    tokens = rng.integers(FIRST_NOISE, END, (batch, dances * (1 + delay), 8))
    place = rng.random((batch, PLACES)).argsort(axis=1)[:, :dances]
    dance = rng.integers(FIRST_DANCE, FIRST_NOISE, (batch, dances, 7))
    tokens[:, :: 1 + delay, 0], tokens[:, :: 1 + delay, 1:] = 16 + place, dance
    row, asked = np.arange(batch), rng.integers(0, dances, batch)
    query = np.concatenate([np.ones((batch, 1), int), dance[row, asked]], axis=1)
    return tokens.astype(np.int32), query.astype(np.int32), place[row, asked].astype(np.int32)


@pytest.mark.night
def test_it_finds_the_place_where_a_dance_was_seen():
    """The ballet of the paper as a sequence, with 8 places: training with 16 tokens of noise behind
    a dance, scores with 48. Without memory nothing is better than chance."""
    stack = Backbone(width=32, layers=2, heads=4, mlp_ratio=2, qk_norm=True)
    model = Model(chunk_length=8, decoder=stack)
    module = HierarchicalChunkMemory(model, 32, END, dials=Dials(3, 2))

    def loss(params, tokens, query, place, memory=True):
        def score(model):
            leaves = model.fold(tokens).leaves
            leaves[VALID] &= memory
            x, real = model.embed_tokens(query, query >= 0), query >= 0
            last = model.read(leaves, x, query, real)[:, -1:]
            return model.head(last)[:, 0, 16:FIRST_DANCE]

        scores = module.apply({"params": params}, method=score)
        nats = optax.softmax_cross_entropy_with_integer_labels(scores, place)
        return nats.mean(), (scores.argmax(axis=-1) == place).mean()

    optimizer = optax.adam(optax.linear_schedule(1e-2, 0, STEPS))

    @jax.jit
    def step(params, moments, batch):
        gradient = jax.grad(loss, has_aux=True)(params, *batch)[0]
        change, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(params, change), moments

    rng = np.random.default_rng(0)
    params = module.init(jax.random.key(0), np.zeros((1, 2, 8), np.int32))["params"]
    moments = optimizer.init(params)
    for _ in range(STEPS):
        params, moments = step(params, moments, ballet(rng, 32, 2, 2))
    found = {n: jax.jit(loss)(params, *ballet(rng, 256, n, 6))[1] for n in (2, 4)}
    assert found[2] > 0.8
    assert found[4] > 0.5
    blind = jax.jit(lambda *args: loss(*args, memory=False))
    assert blind(params, *ballet(rng, 256, 2, 6))[1] < 0.25
