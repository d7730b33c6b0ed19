"""Memoria: what is recalled, what lives on, and a second computation of both with lists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Model
from memjax.models.memory import Memories
from memjax.models.peers.memoria import COUNTS, LIFE, ROWS, WORKING, Dials, Memoria, Recalled

BATCH, CHUNKS, LENGTH, VOCABULARY, WIDTH = 2, 5, 4, 24, 16
MODEL = Model(chunk_length=LENGTH, decoder=Backbone(width=WIDTH, layers=1, heads=2, mlp_ratio=1))
TOKENS = np.random.default_rng(0).integers(6, VOCABULARY, (BATCH, CHUNKS, LENGTH)).astype(np.int32)
REAL = np.ones((BATCH, LENGTH), bool)


def make(kind=Memoria, vectors=14, recalled=2, **dials):
    return kind(MODEL, CHUNKS, VOCABULARY, dials=Dials(vectors, recalled, **dials))


class CarriesGradient(Memoria):
    """A fault: nothing is cut off."""

    def store(self, x):
        return x


class SharesRows(Memoria):
    """A fault: one state for all sequences."""

    def run(self, leaves, recalled, x, valid):
        shared = {**leaves, WORKING: jnp.broadcast_to(leaves[WORKING][:1], leaves[WORKING].shape)}
        return super().run(shared, recalled, x, valid)


class AbstractsItself(Memoria):
    """A fault: the working memory of a chunk is made of the chunk that is scored."""

    def read(self, leaves, x, tokens, valid):
        return super().read(self.update(leaves, tokens, valid), x, tokens, valid)


@pytest.fixture(scope="module")
def weights(draw):
    return draw(make(), TOKENS)


class Row:
    """A row of the second computation."""

    def __init__(self, vector, life):
        self.vector, self.life, self.fired = vector, life, {}

    def with_(self, other):
        return self.fired.get(other, 0)


class Lists:
    """The memory of one sequence, as lists of rows."""

    def __init__(self, module):
        self.dials, self.short_most, self.long_most = module.dials, module.short, module.long
        self.working, self.short, self.long = [], [], []

    def near(self, rows, count):
        def score(row):
            apart = [((a.vector - row.vector) ** 2).sum() for a in self.working]
            return np.exp(-np.array(apart, np.float64)).sum()

        return sorted(rows, key=score, reverse=True)[:count]

    def recall(self):
        short = self.near(self.short, self.dials.recalled)
        here, found = list(short), []
        for _ in range(1 + self.dials.depth):
            left = [row for row in self.long if row not in found]
            if not left:
                break
            here = [max(left, key=row.with_) for row in here]
            found += here
        unique = [row for row in self.long if row in found]
        return short + self.near(unique, self.dials.recalled)

    def step(self, recalled, gained, working):
        fired = recalled + self.working
        for one in fired:
            for other in fired:
                one.fired[other] = one.with_(other) + 1
        for row, steps in zip(recalled, gained, strict=True):
            row.life += steps
        for row in self.long + self.short + self.working:
            row.life -= 1
        short = [row for row in self.short + self.working if row.life > 0]
        older = [row for row in self.long if row.life > 0]
        older += short[: max(0, len(short) - self.short_most)]
        self.short = short[-self.short_most :]
        self.long = sorted(older, key=lambda row: row.life)[-self.long_most :]
        self.working = [Row(vector, self.dials.lifespan) for vector in working]

    def all(self):
        return self.long + self.short + self.working


@pytest.mark.slow
def test_lists_of_rows_have_the_same_memory(weights, quick):
    """Recalled rows, lives and counts, of two sequences that differ, over many steps."""
    module, rng = make(lifespan=4, depth=2), np.random.default_rng(3)
    recall = quick(lambda leaves: module.apply(weights, leaves, method="recall"))
    after = quick(lambda *args: module.apply(weights, *args, method="after"))
    leaves = quick(lambda: module.apply(weights, BATCH, method="empty"))().leaves
    lists, stored = [Lists(module) for _ in range(BATCH)], module.stored
    most, searched = 0, 0
    for _ in range(24):
        recalled = recall(leaves)
        gained = np.zeros((BATCH, stored), np.float32)
        working = rng.normal(0, 0.5, (BATCH, module.working, WIDTH)).astype(np.float32)
        for number, known in enumerate(lists):
            expected = known.recall()
            vectors = np.concatenate([leaves[ROWS][number], leaves[WORKING][number]])
            places = [
                next(i for i, v in enumerate(vectors) if np.array_equal(v, row.vector))
                for row in expected
            ]
            assert sorted(places) == np.flatnonzero(recalled.rows[number]).tolist()
            steps = rng.uniform(0, 3, len(places)).astype(np.float32)
            gained[number, places] = steps
            known.step(expected, steps, working[number])
            searched += sum(place < module.long for place in places)
        leaves = after(leaves, recalled, gained, working)
        for number, known in enumerate(lists):
            there = leaves[LIFE][number] > 0
            vectors = np.concatenate([leaves[ROWS][number], leaves[WORKING][number]])[there]
            np.testing.assert_array_equal(vectors, [row.vector for row in known.all()])
            lives = [row.life for row in known.all()]
            np.testing.assert_allclose(leaves[LIFE][number][there], lives, rtol=1e-5)
            counts = leaves[COUNTS][number][there][:, there]
            assert counts.tolist() == [[a.with_(b) for b in known.all()] for a in known.all()]
            assert np.array_equal(counts, counts.T)
            most = max(most, counts.max())
    assert most > 2
    assert searched > 10
    assert (leaves[LIFE] > 0).sum(axis=1).max() <= 14


def test_a_row_that_is_never_recalled_lives_as_many_steps_as_are_given(weights, quick):
    """Another one, which gains a step each time, outlives it."""
    module, stored = make(lifespan=3), 12
    after = quick(lambda *args: module.apply(weights, *args, method="after"))
    leaves = quick(lambda: module.apply(weights, BATCH, method="empty"))().leaves
    nothing = Recalled(np.zeros((BATCH, 2), bool), np.zeros((BATCH, stored), bool))
    # The rows of the first step have their number in each channel.
    working = np.ones((BATCH, 2, WIDTH), np.float32) * np.array([[1], [2]])
    leaves = after(leaves, nothing, np.zeros((BATCH, stored), np.float32), working)
    found = []
    for step in range(3):
        gained = (leaves[ROWS][..., 0] == 2).astype(np.float32)
        leaves = after(leaves, nothing, gained, 0 * working - 1 - step)
        found.append(sorted({*leaves[ROWS][0, :, 0].tolist()} & {1, 2}))
    assert found == [[1, 2], [1, 2], [2]]
    assert (leaves[LIFE][0] > 0).sum() == 7


def folded(model, count):
    return model.at(model.fold(jnp.asarray(TOKENS[:, :count])), jnp.full(BATCH, count)).leaves


@pytest.mark.slow
def test_what_recalled_rows_gain_adds_up(weights, quick):
    """Alpha steps for each recalled row, and none for another."""
    module, valid = make(), REAL.copy()
    valid[0, 2:] = False

    def run(model):
        leaves = folded(model, 4)
        recalled, x = model.recall(leaves), model.embed_tokens(jnp.asarray(TOKENS[:, 4]), valid)
        return recalled.rows, model.gains(recalled, model.run(leaves, recalled, x, valid)[1], valid)

    rows, gained = quick(lambda v: module.apply(v, method=run))(weights)
    assert (rows.sum(axis=1) >= 2).all()
    np.testing.assert_allclose(gained.sum(axis=1), 8 * rows.sum(axis=1), rtol=1e-5)
    assert not gained[~rows].any()


def scores(module, variables, quick, change=lambda leaves: leaves):
    def run(model):
        leaves = change(folded(model, 4))
        x = model.embed_tokens(jnp.asarray(TOKENS[:, 4]), REAL)
        return model.read(leaves, x, TOKENS[:, 4], REAL)

    return quick(lambda v: module.apply(v, method=run))(variables)


@pytest.mark.slow
@pytest.mark.parametrize(("recalled", "same"), [(0, True), (2, False)])
def test_with_nothing_recalled_working_memory_is_read_alone(recalled, same, weights, quick):
    """Of other rows, which are the same without it, nothing is then read."""
    module = make(recalled=recalled)
    one = scores(module, weights, quick)
    other = scores(module, weights, quick, lambda x: {**x, ROWS: -x[ROWS]})
    assert np.array_equal(one, other) is same


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "same"), [(Memoria, True), (CarriesGradient, False)])
def test_the_abstractor_learns_from_one_chunk(kind, same, weights, quick):
    """Its gradient is that of the last written chunk alone: stored rows carry none."""
    module = make(kind)

    def score(params, before):
        def run(model):
            state = model.write(before, jnp.asarray(TOKENS[:, 3]))
            x = model.embed_tokens(jnp.asarray(TOKENS[:, 4]), REAL)
            return model.read(state.leaves, x, TOKENS[:, 4], REAL).sum()

        return module.apply({"params": params}, method=run)

    def state(params):
        return Memories(module.apply({"params": params}, 3, method=folded), 3, module.KIND)

    params = weights["params"]
    whole, last = quick(
        lambda p: (
            jax.grad(lambda p: score(p, state(p)))(p),
            jax.grad(score)(p, jax.lax.stop_gradient(state(p))),
        )
    )(params)
    one, other = (x["abstract_value"]["kernel"] for x in (whole, last))
    assert one.any()
    assert np.allclose(one, other, rtol=1e-4, atol=1e-5) is same


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "apart"), [(Memoria, True), (SharesRows, False)])
def test_a_state_that_sequences_share_is_seen(kind, apart, weights, quick):
    """T9 fails where a sequence reads rows of another."""
    module, leaves = make(kind), make_state()
    x = np.random.default_rng(5).normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
    read = quick(lambda *args: module.apply(weights, *args, TOKENS[:, 0], REAL, method="read"))
    other = {**leaves, WORKING: leaves[WORKING] * np.array([2, 1])[:, None, None]}
    assert np.array_equal(read(leaves, x)[1], read(other, x)[1]) is apart


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "causal"), [(Memoria, True), (AbstractsItself, False)])
def test_a_working_memory_of_the_scored_chunk_is_seen(kind, causal, weights, quick):
    """T2r fails where it is made of the chunk itself."""
    module, leaves = make(kind), make_state()
    x = np.random.default_rng(5).normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)
    read = quick(lambda tokens: module.apply(weights, leaves, x, tokens, REAL, method="read"))
    other = TOKENS[:, 0].copy()
    other[:, 2] = np.where(other[:, 2] == 7, 8, 7)
    assert np.array_equal(read(TOKENS[:, 0])[:, :2], read(other)[:, :2]) is causal


def make_state():
    """A full memory in which all rows fired alike."""
    rng = np.random.default_rng(4)
    return {
        WORKING: rng.normal(size=(BATCH, 2, WIDTH)).astype(np.float32),
        ROWS: rng.normal(size=(BATCH, 12, WIDTH)).astype(np.float32),
        LIFE: np.full((BATCH, 14), 9, np.float32),
        COUNTS: np.ones((BATCH, 14, 14), np.int16),
    }
