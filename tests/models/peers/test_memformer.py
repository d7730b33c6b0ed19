"""Memformer: slots that do not see one another, of length 1, which every layer reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Model
from memjax.models.peers.memformer import SLOTS, Dials, Memformer, unit

RNG = np.random.default_rng(1)
BATCH, CHUNKS, LENGTH, VOCABULARY = 2, 3, 4, 24
MODEL = Model(chunk_length=LENGTH, decoder=Backbone(width=16, layers=2, heads=2, mlp_ratio=1))
MODULE = Memformer(MODEL, CHUNKS, VOCABULARY, dials=Dials(vectors=2))
TOKENS = RNG.integers(6, VOCABULARY, (BATCH, CHUNKS, LENGTH)).astype(np.int32)
REAL = np.ones(TOKENS.shape, bool)
STATES = RNG.normal(size=(BATCH, LENGTH, 16)).astype(np.float32)
SOME = np.asarray(unit(jnp.asarray(RNG.normal(size=(BATCH, 2, 16)), jnp.float32)))


@pytest.fixture(scope="module")
def memformer(draw):
    return MODULE, draw(MODULE, TOKENS)


@pytest.mark.slow
def test_slots_do_not_see_one_another(memformer, quick):
    module, variables = memformer

    def write(slots):
        return module.apply(variables, slots, STATES, REAL[:, 0], method="write_slots")

    found = quick(jax.jacrev(write))(SOME)
    assert not found[:, 0, :, :, 1].any()
    assert not found[:, 1, :, :, 0].any()
    assert found[:, 0, :, :, 0].any()


@pytest.mark.slow
def test_slots_have_length_one(memformer, quick):
    module, variables = memformer

    def run(model):
        state = model.empty(BATCH)
        return state, model.write(state, jnp.asarray(TOKENS[:, 0]))

    for state in quick(lambda v: module.apply(v, method=run))(variables):
        lengths = np.linalg.norm(state.leaves[SLOTS], axis=-1)
        np.testing.assert_allclose(lengths, 1, atol=1e-6)


def test_nothing_is_forgotten_without_a_bias_and_without_text(memformer, quick):
    module, variables = memformer
    params = {**variables["params"], "bias": jnp.zeros((2, 16))}
    nothing = np.zeros((BATCH, LENGTH), bool)

    def write(params):
        return module.apply({"params": params}, SOME, STATES, nothing, method="write_slots")

    np.testing.assert_allclose(quick(write)(params), SOME, atol=1e-6)


@pytest.mark.slow
def test_slots_have_no_order(memformer, quick):
    """Slots in another order, together with their biases, are read and written alike."""
    module, variables = memformer
    params = variables["params"]
    other = {**params, "bias": params["bias"][::-1]}

    def run(params):
        def both(model):
            state = model.empty(BATCH)
            x = model.embed_tokens(jnp.asarray(TOKENS[:, 1]), REAL[:, 1])
            after = model.write(state, jnp.asarray(TOKENS[:, 0])).leaves
            return after[SLOTS], model.read(after, x, TOKENS[:, 1], REAL[:, 1])

        return module.apply({"params": params}, method=both)

    jitted = quick(run)
    (slots, read), (turned, same) = jitted(params), jitted(other)
    np.testing.assert_allclose(slots, turned[:, ::-1], atol=1e-5)
    np.testing.assert_allclose(read, same, atol=1e-5)


@pytest.mark.slow
def test_without_read_values_no_text_before_matters(memformer, quick):
    """T10: the memory is then of no use, and the scores are those of the control."""
    module, variables = memformer
    params = {
        name: {**leaf, "out": jax.tree.map(jnp.zeros_like, leaf["out"])}
        if name.startswith("readers")
        else leaf
        for name, leaf in variables["params"].items()
    }
    control = MODULE.clone(memory=False)

    def logits(params, model):
        return model.apply({"params": params}, TOKENS)

    one, other = (quick(lambda p, m=m: logits(p, m))(params) for m in (module, control))
    assert one.shape == (*TOKENS.shape, VOCABULARY)
    np.testing.assert_allclose(one, other, atol=1e-6)
