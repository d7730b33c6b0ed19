"""R3Mem: a stack whose inverse reconstructs. The common tests are in test_peer.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Model
from memjax.models.peers.reversible import STATE, Dials, ReversibleMemory
from memjax.models.request import next_chunks

BATCH, CHUNKS, LENGTH, VOCABULARY, ROWS = 2, 3, 4, 24, 2
STACK = Backbone(width=16, layers=2, heads=2, mlp_ratio=1)
MODEL = Model(chunk_length=LENGTH, decoder=STACK)
RNG = np.random.default_rng(5)
TOKENS = RNG.integers(6, VOCABULARY, (BATCH, CHUNKS, LENGTH)).astype(np.int32)
REAL = np.ones((BATCH, LENGTH), bool)
PLACES = np.pad(REAL, ((0, 0), (0, ROWS)), constant_values=True)
SEEN = PLACES & (np.arange(LENGTH + ROWS) != 1)
SOME = RNG.normal(size=(BATCH, LENGTH + ROWS, 16)).astype(np.float32)


def make(kind=ReversibleMemory, model=MODEL, **dials):
    return kind(model, CHUNKS, VOCABULARY, dials=Dials(**{"vectors": ROWS, **dials}))


def decoded(model, tokens=TOKENS):
    prefixes = model.written(tokens, jnp.ones(tokens.shape, bool), np.arange(CHUNKS))
    return model.hidden(prefixes, next_chunks(tokens, tokens))


@pytest.fixture(scope="module")
def variables(draw):
    return draw(make(), TOKENS)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "close"), [("float32", 1e-5), ("bfloat16", 1e-2)])
def test_the_inverse_undoes_the_stack(variables, quick, dtype, close):
    """B.7 (1): in either order."""
    module = make(model=dataclasses.replace(MODEL, dtype=dtype))

    def both(model):
        there = model.run(SOME, PLACES)
        back = model.run(SOME, PLACES, forward=False)
        return there, model.run(there, PLACES, forward=False), model.run(back, PLACES)

    there, one, two = quick(lambda v: module.apply(v, method=both))(variables)
    assert np.abs(there - SOME).max() > 0.5
    np.testing.assert_allclose(one, SOME, atol=close)
    np.testing.assert_allclose(two, SOME, atol=close)


@pytest.mark.slow
def test_gradients_from_outputs_are_those_of_kept_activations(variables, quick):
    """B.7 (2): of weights and of inputs, through both directions."""

    def slopes(module):
        def total(variables, x):
            def run(model):
                # Not its own inverse: other places are valid.
                y = model.run(x, SEEN)
                return jnp.sin(model.run(y, PLACES, forward=False)).sum()

            return module.apply(variables, method=run)

        return quick(jax.grad(total, (0, 1)))(variables, SOME)

    ours, plain = slopes(make()), slopes(make(recompute=False))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(plain[0]["params"]["blocks_0"]))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5), ours, plain)


@pytest.mark.slow
def test_what_is_kept_whole_is_reconstructed(variables, quick):
    """B.7 (3): with no position dropped, two chunks come back, with the states before them, and so
    do their nats."""

    def run(model):
        x = [model.embed_tokens(TOKENS[:, chunk], REAL) for chunk in range(2)]
        states, outputs = [model.empty(BATCH).leaves[STATE]], []
        for chunk in range(2):
            y = model.run(jnp.concatenate([x[chunk], states[-1]], axis=1), PLACES)
            outputs.append(y[:, :LENGTH])
            states.append(y[:, LENGTH:])
        written = model.fold(TOKENS[:, :2]).leaves[STATE]
        found, state = [], states[-1]
        for kept in outputs[::-1]:
            back = model.run(jnp.concatenate([kept, state], axis=1), PLACES, forward=False)
            state = back[:, LENGTH:]
            found.insert(0, back[:, :LENGTH])
        nats = [
            [model.head.token_losses(y[chunk], TOKENS[:, chunk])[0] for chunk in range(2)]
            for y in (x, found)
        ]
        return (jnp.stack(states, axis=1), written), (states[0], state), (x, found), nats

    for one, other in quick(lambda v: make().apply(v, method=run))(variables):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.slow
def test_without_memory_the_reconstruction_is_that_of_no_text(variables, quick):
    """B.7 (4): bit by bit; with it, it is that of the text."""

    def run(model, tokens):
        state = model.fold(tokens[:, :1]).leaves[STATE][:, 1]
        return model.unfold(0 * state)[0], model.unfold(state)[0]

    program = quick(lambda t: make().apply(variables, t, method=run))
    (one, text), (two, other) = program(TOKENS), program(TOKENS[:, ::-1])
    assert np.array_equal(one, two)
    assert (text != other).any(axis=(1, 2)).all()


@pytest.mark.slow
def test_without_sums_nothing_changes(variables, quick):
    """B.7 (5), T10: with F = G = 0 a write keeps the state, the cycle is closed, and the scores are
    those of the control."""
    params = dict(variables["params"])
    for name in ("blocks_0", "blocks_1"):
        block = dict(params[name])
        block["mix"] = {**block["mix"], "out": {"kernel": 0 * block["mix"]["out"]["kernel"]}}
        block["mlp"] = {**block["mlp"], "down": {"kernel": 0 * block["mlp"]["down"]["kernel"]}}
        params[name] = block

    def run(model):
        leaves = {STATE: model.fold(TOKENS).leaves[STATE][:, -1]}
        return leaves[STATE], model.auxiliary_losses(leaves, TOKENS[:, -1], REAL), decoded(model)

    control = make().clone(memory=False)
    state, (_, cycle), hidden = quick(lambda p: make().apply({"params": p}, method=run))(params)
    plain = quick(lambda p: control.apply({"params": p}, method=decoded))(params)
    assert np.array_equal(state, np.broadcast_to(params["first"], state.shape))
    assert not cycle.any()
    np.testing.assert_allclose(hidden, plain, atol=1e-6)


@pytest.mark.slow
def test_auxiliary_losses_reach_both_directions(variables, quick):
    """Nats of padding are 0, and no loss has a gradient without a number."""
    valid = np.broadcast_to(np.arange(LENGTH) < 3, REAL.shape)

    def losses(variables):
        def run(model):
            leaves = {STATE: model.fold(TOKENS[:, :1], valid[:, None]).leaves[STATE][:, 1]}
            return model.auxiliary_losses(leaves, TOKENS[:, 0], valid)

        nats, cycle = make().apply(variables, method=run)
        return nats.sum() + cycle.sum(), (nats, cycle)

    slopes, (nats, cycle) = quick(jax.grad(losses, has_aux=True))(variables)
    assert (nats[:, :3] > 0).all()
    assert not nats[:, 3].any()
    assert (cycle > 0).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    for name in ("blank", "first", "blocks_0", "blocks_1"):
        assert all(np.any(leaf) for leaf in jax.tree.leaves(slopes["params"][name]))


@pytest.mark.slow
def test_padding_of_a_chunk_is_not_written(variables, quick):
    """Neither on the right nor on the left."""
    valid = np.broadcast_to(np.arange(LENGTH) < 3, REAL.shape)

    def write(tokens, valid):
        def run(model):
            return model.update(model.start(BATCH), tokens, valid)[STATE]

        return make().apply(variables, method=run)

    program = quick(write)
    right = program(TOKENS[:, 0], valid)
    left = program(np.roll(TOKENS[:, 0], 1, axis=1), valid[:, ::-1])
    np.testing.assert_allclose(left, right, atol=1e-5)


class ReadsBothWays(ReversibleMemory):
    """A fault: a chunk is decoded by the stack that writes."""

    def read(self, leaves, x, tokens, valid):
        rows = jnp.concatenate([x, leaves[STATE]], axis=1)
        return self.run(rows, jnp.pad(valid, ((0, 0), (0, ROWS)), constant_values=True))[:, :LENGTH]


class WritesTogether(ReversibleMemory):
    """A fault: all sequences of a batch share what is written."""

    def update(self, leaves, tokens, valid):
        state = super().update(leaves, tokens, valid)[STATE]
        return {STATE: jnp.broadcast_to(state.mean(axis=0), state.shape)}


@pytest.mark.slow
def test_the_common_tests_find_what_looks_ahead_and_what_is_shared(variables, quick):
    """T2 and T9 would fail."""
    late, second = TOKENS.copy(), TOKENS.copy()
    late[:, -1, -1] = 7
    second[1] = 7
    found = {}
    for kind in (ReversibleMemory, ReadsBothWays, WritesTogether):
        module = make(kind)
        program = quick(lambda t, m=module: m.apply(variables, t, method=decoded))
        one, two, three = (program(tokens) for tokens in (TOKENS, late, second))
        causal = np.array_equal(one[:, -1, :-1], two[:, -1, :-1])
        found[kind.__name__] = causal, np.array_equal(one[0], three[0])
    assert found == {
        "ReversibleMemory": (True, True),
        "ReadsBothWays": (False, True),
        "WritesTogether": (True, False),
    }
