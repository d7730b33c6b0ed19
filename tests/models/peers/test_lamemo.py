"""LaMemo and Transformer-XL: what rows take in from both sides, and what either is without it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Model
from memjax.models.peers.lamemo import (
    FILLED,
    FRESH,
    MIXED,
    ROWS,
    TOTAL,
    Dials,
    LaMemo,
    TransformerXL,
    merge,
)

BATCH, CHUNKS, LENGTH, VOCABULARY, WIDTH = 2, 4, 4, 24, 16
MODEL = Model(
    chunk_length=LENGTH,
    decoder=Backbone(width=WIDTH, layers=2, heads=2, mlp_ratio=1, qk_norm=True),
)
TOKENS = np.random.default_rng(0).integers(6, VOCABULARY, (BATCH, CHUNKS, LENGTH)).astype(np.int32)
REAL = np.ones((BATCH, LENGTH), bool)


def make(kind=LaMemo, tokens=6, **about):
    return kind(MODEL, CHUNKS, VOCABULARY, dials=Dials(tokens), **about)


class KeepsThePast(LaMemo):
    """Rows take in nothing of what stands behind them."""

    def share(self, old, new):
        return jnp.ones_like(old)


class LooksAhead(LaMemo):
    """A fault: rows attend to all inputs of the pass."""

    def looked_at(self, leaves, valid):
        ahead = super().looked_at(leaves, valid)
        return ahead.at[:, :, self.dials.tokens :].set(True)


class CarriesGradient(LaMemo):
    """A fault: what is kept is not cut off."""

    def store(self, x):
        return x


@pytest.fixture(scope="module")
def weights(draw):
    return draw(make(), TOKENS)


def without_ahead(variables):
    """The weights of Transformer-XL, whose queries do not look to the right."""
    params = {
        name: {part: leaf for part, leaf in tree.items() if part != "before"}
        if name.startswith("blocks")
        else tree
        for name, tree in variables["params"].items()
    }
    return {"params": params}


@pytest.mark.slow
def test_without_what_stands_behind_it_is_transformer_xl(weights, quick):
    """A share of 1 of the past; some rows are kept over two chunks."""
    xl = without_ahead(weights)
    one = quick(lambda v: make(KeepsThePast).apply(v, TOKENS))(weights)
    other = quick(lambda v: make(TransformerXL).apply(v, TOKENS))(xl)
    np.testing.assert_allclose(one, other, atol=1e-5)
    ours = quick(lambda v: make().apply(v, TOKENS))(weights)
    np.testing.assert_allclose(ours[:, :1], other[:, :1], atol=1e-5)
    assert np.abs(ours - other)[:, 1:].max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", [LaMemo, TransformerXL])
def test_without_kept_tokens_chunks_are_alone(kind, weights, quick):
    """A causal language model of each chunk, and the control (T10)."""
    variables = weights if kind is LaMemo else without_ahead(weights)
    found = quick(lambda v: make(kind, 0).apply(v, TOKENS))(variables)
    control = quick(lambda v: make(kind, memory=False).apply(v, TOKENS))(variables)
    np.testing.assert_allclose(found, control, atol=1e-5)


def test_two_sets_of_keys_have_one_softmax(quick):
    """Scores of 80 and more, whose weights float32 does not hold, are no trouble."""
    rng = np.random.default_rng(1)
    scores, values = rng.normal(0, 80, (1, 3, 2, 7)), rng.normal(size=(1, 7, 2, 4))
    assert scores.max() > 100

    def mix(part):
        own = jnp.asarray(scores[..., part], jnp.float32)
        taken = jnp.einsum("nths,nshe->nthe", jax.nn.softmax(own), values[:, part])
        return taken, jax.nn.logsumexp(own, axis=-1)

    def both():
        (old, old_total), (new, new_total) = mix(slice(0, 3)), mix(slice(3, 7))
        share = jax.nn.sigmoid(old_total - new_total)
        return merge(old, old_total, new, new_total, share), mix(slice(0, 7))

    (mixed, total), (whole, whole_total) = quick(both)()
    np.testing.assert_allclose(mixed, whole, atol=1e-6)
    np.testing.assert_allclose(total, whole_total, rtol=1e-6)


def embedded(model, chunks):
    parts = [model.embed_tokens(jnp.asarray(TOKENS[:, i]), REAL) for i in range(chunks)]
    return jnp.concatenate(parts, axis=1)


@pytest.mark.slow
def test_chunks_in_turn_are_one_pass_over_the_text(weights, quick):
    """Transformer-XL that keeps all tokens."""
    module, chunks = make(TransformerXL, 12), 3

    def run(model):
        state = model.fold(jnp.asarray(TOKENS[:, :chunks])).leaves[ROWS][:, -1]
        valid = jnp.ones((BATCH, chunks * LENGTH), bool)
        return state, model.run(model.start(BATCH), embedded(model, chunks), valid)[1][ROWS]

    kept, once = quick(lambda v: module.apply(v, method=run))(without_ahead(weights))
    np.testing.assert_allclose(kept, once[:, -12:], atol=1e-5)


@pytest.mark.slow
def test_a_row_takes_every_token_in_once(weights, quick):
    """The sum of the lowest layer, whose keys never change, is that over all tokens up to the end
    of the second chunk: the third one has not been looked at yet."""
    module, seen = make(tokens=12), 2 * LENGTH

    def run(model):
        leaves = model.fold(jnp.asarray(TOKENS[:, :3])).leaves
        block, x = model.blocks[0], embedded(model, 2)
        query, key, value = block.heads(x)
        at = np.arange(seen)
        distance = jnp.broadcast_to(abs(at[:, None] - at), (BATCH, seen, seen))
        past = jnp.broadcast_to(at <= at[:, None], distance.shape)
        left = block.mix(query, key, value, distance, past)
        right = block.mix(query, key, value, distance, ~past, True)
        share = model.share(left[1], right[1])
        found = leaves[MIXED][:, -1, :, 0], leaves[TOTAL][:, -1, :, 0]
        return found, merge(*left, *right, share)

    found, expected = quick(lambda v: module.apply(v, method=run))(weights)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one[:, :LENGTH], other[:, :LENGTH], atol=1e-5)


@pytest.mark.slow
def test_rows_are_the_last_real_tokens(weights, quick):
    valid = REAL.copy()
    valid[0, 1] = valid[0, 3] = False
    module = make()

    def run(model):
        state = model.write(model.empty(BATCH), jnp.asarray(TOKENS[:, 0]))
        state = model.write(state, jnp.asarray(TOKENS[:, 1]), jnp.asarray(valid))
        x = model.embed_tokens(jnp.asarray(TOKENS[:, 1]), jnp.asarray(valid))
        return state.leaves, x

    leaves, x = quick(lambda v: module.apply(v, method=run))(weights)
    assert leaves[FILLED].tolist() == [6, 6]
    assert leaves[FRESH].tolist() == [2, 4]
    np.testing.assert_array_equal(leaves[ROWS][0, -2:], x[0, [0, 2]])
    np.testing.assert_array_equal(leaves[ROWS][1, -4:], x[1])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "causal"), [(LaMemo, True), (LooksAhead, False)])
def test_rows_that_attend_to_the_chunk_itself_are_seen(kind, causal, weights, quick):
    """T2 fails where a row looks at inputs behind the one that is scored."""
    module = make(kind)

    @quick
    def read(tokens):
        def run(model):
            state = model.write(model.empty(BATCH), jnp.asarray(TOKENS[:, 0])).leaves
            return model.read(state, model.embed_tokens(tokens, REAL), tokens, REAL)

        return module.apply(weights, method=run)

    other = TOKENS[:, 1].copy()
    other[:, 2] = np.where(other[:, 2] == 7, 8, 7)
    one, two = read(TOKENS[:, 1]), read(other)
    assert np.array_equal(one[:, :2], two[:, :2]) is causal


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "cut"), [(LaMemo, True), (CarriesGradient, False)])
def test_kept_rows_carry_no_gradient(kind, cut, weights, quick):
    """T8 fails where they carry one: the second chunk is scored, and the tokens of the first one
    have a gradient of 0."""
    module, tokens = make(kind), TOKENS % 6 + 6 * np.arange(CHUNKS)[:, None]

    def score(table):
        params = {**weights["params"], "embed": {"embedding": table}}
        return module.apply({"params": params}, tokens)[:, 1].sum()

    found = quick(jax.grad(score))(weights["params"]["embed"]["embedding"])
    assert found[6:12].any()
    assert bool(found[:6].any()) is not cut
