"""The recurrent memory transformer: truncation, its equalities with a plain stack, and its mask."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Config, Data, Model, Stage
from memjax.models import build
from memjax.models.peers.rmt import STATE, Dials, RecurrentMemoryTransformer, block_mask

CHUNKS, LENGTH, VOCABULARY, WIDTH = 3, 4, 24, 16
STACK = Backbone(width=WIDTH, layers=1, heads=2, mlp_ratio=1)
MODEL = Model(chunk_length=LENGTH, decoder=STACK, encoder=STACK)
# No token comes twice, so that the gradient at a row of the table is that of one token.
TOKENS = np.arange(6, 6 + CHUNKS * LENGTH, dtype=np.int32).reshape(1, CHUNKS, LENGTH)


def make(kind=RecurrentMemoryTransformer, model=MODEL, chunks=CHUNKS, vectors=2):
    return kind(model, chunks, VOCABULARY, dials=Dials(vectors))


class SharedRows(RecurrentMemoryTransformer):
    """A fault: what a sequence writes is the mean over the batch."""

    def update(self, leaves, tokens, valid):
        state = super().update(leaves, tokens, valid)[STATE]
        return {STATE: jnp.broadcast_to(state.mean(0), state.shape)}


def reach(module, variables, quick):
    """Which chunk's logits have a gradient at which chunk's tokens [C, C], and at the start [C]."""

    def losses(params):
        return jnp.square(module.apply({"params": params}, TOKENS)).sum(axis=(0, 2, 3))

    by = quick(jax.jacrev(losses))(variables["params"])
    by_token = by["embed"]["embedding"][:, TOKENS.ravel()].reshape(CHUNKS, CHUNKS, -1)
    return np.any(by_token != 0, axis=-1), np.any(by["first"] != 0, axis=(1, 2))


@pytest.mark.slow
def test_truncation_stops_gradients_at_every_border(draw, quick):
    """At a border after every chunk no loss reaches what was written.
    Without truncation, as in the published code, a gradient reaches the first chunk."""
    variables = draw(make(), TOKENS)
    cut = make(model=dataclasses.replace(MODEL, bptt_chunks=1))
    by_token, by_first = reach(cut, variables, quick)
    assert by_token.tolist() == np.eye(3, dtype=bool).tolist()
    assert by_first.tolist() == [True, False, False]
    by_token, by_first = reach(make(), variables, quick)
    assert by_token[2].all() and by_first.all()


@pytest.mark.slow
def test_one_chunk_behind_one_vector_is_prompt_tuning(draw, quick):
    module = make(vectors=1)
    variables = draw(module, TOKENS)

    @quick
    def both(tokens, valid):
        def run(model):
            x = model.embed_tokens(tokens, valid)
            prompt = jnp.broadcast_to(model.first, (1, 1, WIDTH))
            plain = model.backbone(jnp.concatenate([prompt, x], axis=1))[:, 1:]
            return model.read(model.start(1), x, tokens, valid), plain

        return module.apply(variables, method=run)

    np.testing.assert_allclose(*both(TOKENS[:, 0], np.ones((1, LENGTH), bool)), atol=1e-6)


@pytest.mark.slow
def test_vectors_that_are_read_see_no_token_and_each_other(draw, quick):
    """At one shared position, permuting them permutes what leaves at them, and nothing else."""
    module = make(vectors=3)
    variables = draw(module, TOKENS)
    seen = np.ones((1, 3 + LENGTH), bool)
    positions = np.array([[0, 0, 0, 1, 2, 3, 4]])

    @quick
    def leaves(order, tokens):
        def run(model):
            x = jnp.concatenate([model.first[order][None], model.embed(tokens)], axis=1)
            return model.backbone(x, positions, block_mask(seen, 3, 0))

        return module.apply(variables, method=run)

    order = np.array([2, 0, 1])
    plain = leaves(np.arange(3), TOKENS[:, 0])
    turned, other = leaves(order, TOKENS[:, 0]), leaves(np.arange(3), TOKENS[:, 1])
    np.testing.assert_array_equal(plain[:, :3], other[:, :3])
    np.testing.assert_allclose(turned[:, :3], plain[:, order], atol=1e-5)
    np.testing.assert_allclose(turned[:, 3:], plain[:, 3:], atol=1e-5)


@pytest.mark.slow
def test_blocks_of_vectors_see_themselves_and_what_is_before():
    seen = np.array([[True, True, True, False, True, True]])
    assert block_mask(seen, 2, 2)[0].astype(int).tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 1, 1],
        [1, 1, 1, 0, 1, 1],
    ]


@pytest.mark.slow
def test_weights_of_two_chunks_run_over_seven(draw, quick):
    short, long = make(chunks=2), make(chunks=7)
    variables, tokens = draw(short, TOKENS[:, :2]), np.resize(TOKENS, (1, 7, LENGTH))
    shapes = jax.eval_shape(long.init, jax.random.key(0), tokens)
    assert jax.tree.structure(shapes) == jax.tree.structure(variables)
    states = quick(lambda x: short.apply(variables, x, method="fold").leaves[STATE])(tokens)
    assert states.shape == (1, 8, 2, WIDTH) and np.isfinite(states).all()


@pytest.mark.slow
def test_a_state_that_rows_share_would_be_found(draw, quick):
    """The common test of independent sequences fails on it."""
    tokens = np.concatenate([TOKENS, TOKENS[:, ::-1]])
    other = tokens.copy()
    other[1] = 7
    module = make(SharedRows)
    variables = draw(module, tokens)
    write = quick(lambda x: module.apply(variables, x, method="fold").leaves[STATE])
    assert not np.array_equal(write(tokens)[0], write(other)[0])


def test_the_registered_peer_is_this_one():
    config = Config(data=Data(vocab_size=VOCABULARY, sequence_length=12), model=MODEL)
    module = build(config, Stage(family="rmt", objectives={"next_token": 1.0}))
    assert type(module) is RecurrentMemoryTransformer and module.dials == Dials()
