"""vec2text: a corrector turns a frozen vector back into text when it is read."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from memjax.config import Backbone, Config, Data, Model, Stage
from memjax.models import build
from memjax.models.memory import VALID, VECTORS
from memjax.models.peers import PEERS
from memjax.training.optimizer import merge, split

CHUNKS, LENGTH, VOCABULARY = 3, 4, 12
STACK = Backbone(width=16, layers=1, heads=2, mlp_ratio=1)
MODEL = Model(chunk_length=LENGTH, decoder=STACK, encoder=STACK)
TOKENS = np.random.default_rng(1).integers(6, VOCABULARY, (6, LENGTH)).astype(np.int32)
REAL = np.ones(TOKENS.shape, bool)


def module_of(**dials):
    config = Config(data=Data(vocab_size=VOCABULARY, sequence_length=CHUNKS * LENGTH), model=MODEL)
    dials = {**PEERS["vec2text"].tiny, **dials}
    return build(config, Stage(family="vec2text", dials=dials, objectives={"next_token": 1.0}))


@pytest.fixture(scope="module")
def inverted(draw, quick):
    """A module, its weights, the vectors of the texts, and three rounds of their inversion."""
    module = module_of(rounds=2)
    variables = draw(module, TOKENS[None])

    def run(module, tokens, valid):
        vectors = module.vector_of(tokens, valid)
        return vectors, *module.rounds(vectors), module.inversion_nats(tokens, valid)

    program = quick(lambda *args: module.apply(variables, *args, method=run))
    return module, variables, program


@pytest.mark.slow
def test_a_vector_has_length_1_and_no_padding(inverted):
    _, _, program = inverted
    valid = np.broadcast_to(np.arange(LENGTH) < 3, TOKENS.shape)
    other = TOKENS.copy()
    other[:, 3] = 7
    vectors = program(TOKENS, valid)[0]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5)
    assert np.array_equal(vectors, program(other, valid)[0])
    left = program(np.roll(TOKENS, 1, axis=1), valid[:, ::-1])[0]
    np.testing.assert_allclose(left, vectors, atol=1e-5)
    nothing = program(TOKENS, np.zeros_like(valid))
    assert not np.any(nothing[0])
    assert all(np.isfinite(x).all() for x in nothing)


@pytest.mark.slow
def test_a_round_corrects_the_hypothesis_of_the_one_before(inverted, quick):
    """Written out: its own vector, the difference, and its tokens."""
    module, variables, program = inverted
    vectors, states, texts, _ = program(TOKENS, REAL)

    def run(module, vectors, text):
        guess = module.vector_of(text, jnp.ones(text.shape, bool))
        return module.correct(vectors, guess, module.embed(text))

    again = quick(lambda *args: module.apply(variables, *args, method=run))
    for number in range(2):
        found = again(vectors, texts[number])
        np.testing.assert_allclose(found, states[number + 1], atol=1e-5)


def test_the_true_text_has_no_difference(inverted, quick):
    """What a corrector reads of the difference is then that of a vector of 0, bit by bit."""
    module, variables, program = inverted
    vectors = program(TOKENS, REAL)[0]

    def run(module, vectors, hypothesis):
        guess = module.vector_of(hypothesis, REAL)
        return vectors - guess

    difference = quick(lambda *args: module.apply(variables, *args, method=run))
    assert not np.any(difference(vectors, TOKENS))
    assert np.any(difference(vectors, np.roll(TOKENS, 1, axis=0)), axis=1).all()


def test_the_first_hypothesis_is_a_function_of_the_vector(inverted):
    """Texts with one vector have one hypothesis, and other texts have others' states."""
    _, _, program = inverted
    other = TOKENS.copy()
    other[1] = TOKENS[0]
    states = program(other, REAL)[1]
    np.testing.assert_allclose(states[:, 0], states[:, 1], atol=1e-5)
    assert not np.array_equal(states[0, 0], states[0, 2])


def test_a_corrector_reads_the_whole_hypothesis(inverted, quick):
    """The last token reaches the first place."""
    module, variables, program = inverted
    vectors = program(TOKENS, REAL)[0]

    def run(module, text):
        return module.correct(vectors, jnp.zeros_like(vectors), module.embed(text))

    found = quick(lambda text: module.apply(variables, text, method=run))
    other = TOKENS.copy()
    other[:, -1] = 6 + (TOKENS[:, -1] - 5) % (VOCABULARY - 6)
    assert not np.array_equal(found(TOKENS)[:, 0], found(other)[:, 0])


@pytest.mark.slow
def test_the_embedder_has_no_gradient(inverted, quick):
    """Neither by the vector nor by a hypothesis; the corrector has one."""
    module, variables, _ = inverted

    def loss(variables):
        return module.apply(variables, TOKENS, REAL, method="inversion_nats").sum()

    gradients = quick(jax.grad(loss))(variables)["params"]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    some = {
        name
        for name, leaves in gradients.items()
        if any(np.any(leaf) for leaf in jax.tree.leaves(leaves))
    }
    assert {"corrector", "draft", "embed", "head", "separator"} <= some
    assert not {"embedder_embed", "embedder_backbone"} & some


@pytest.mark.slow
def test_entries_are_inverted_once(inverted, quick):
    """What the decoder reads is the same where the rows are there and where they are not."""
    module, variables, program = inverted
    vectors = program(TOKENS, REAL)[0].reshape(3, 2, 1, -1)
    filled = np.array([[True, True], [True, False], [False, False]])
    tokens, valid = TOKENS[:3], REAL[:3]

    def run(module):
        leaves = {VECTORS: vectors, VALID: filled}
        x = module.embed(tokens)
        rows = module.inverted(vectors)
        return [module.read(y, x, tokens, valid) for y in (leaves, {**leaves, "rows": rows})]

    one, two = quick(lambda: module.apply(variables, method=run))()
    np.testing.assert_allclose(one, two, atol=1e-6)


@pytest.mark.slow
def test_a_trained_corrector_gains_by_its_rounds(draw, quick):
    """Six texts are learned, and a true text is then a fixed point."""
    module = module_of(rounds=2)
    variables = draw(module, TOKENS[None])
    trained, frozen = split(variables["params"], PEERS["vec2text"].trainable, "trainable")
    optimizer = optax.adam(0.01)

    def loss(trained):
        variables = {"params": merge(trained, frozen)}
        return module.apply(variables, TOKENS, REAL, method="inversion_nats").mean(axis=1)

    def step(carry, _):
        trained, moments = carry
        gradient, nats = jax.grad(lambda x: (loss(x).sum(), loss(x)), has_aux=True)(trained)
        change, moments = optimizer.update(gradient, moments, trained)
        return (optax.apply_updates(trained, change), moments), nats

    @quick
    def run(trained):
        (after, _), nats = jax.lax.scan(step, (trained, optimizer.init(trained)), None, 150)
        return after, nats

    def exact(module):
        return module.rounds(module.vector_of(TOKENS, REAL))[1]

    after, nats = run(trained)
    assert nats[-1].max() < nats[0].min() / 4
    variables = {"params": merge(after, frozen)}
    texts = quick(lambda: module.apply(variables, method=exact))()
    right = (texts == TOKENS).all(axis=2).mean(axis=1)
    assert right[-1] == 1
    assert (np.diff(right) >= 0).all()


def test_rows_that_are_shared_are_seen(inverted, quick):
    """T9 of the common tests fails where an embedder centres the vectors of its batch."""
    module, variables, _ = inverted

    class Centred(type(module)):
        """Faulty: vectors are taken from their mean."""

        def vector_of(self, tokens, valid):
            vectors = super().vector_of(tokens, valid)
            return vectors - vectors.mean(axis=0)

    faulty = Centred(module.config, module.chunks, module.vocab_size, module.dials)
    program = quick(lambda *args: faulty.apply(variables, *args, method="vector_of"))
    other = TOKENS.copy()
    other[1] = 7
    assert not np.array_equal(program(TOKENS, REAL)[0], program(other, REAL)[0])
