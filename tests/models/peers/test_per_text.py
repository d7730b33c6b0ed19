"""Cramming and Memory Tokens: a write is gradient steps for one text on a frozen language model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from memjax.config import Backbone, Config, Data, Model, Stage
from memjax.models import build
from memjax.models.memory import VECTORS
from memjax.models.peers import PEERS

CHUNKS, LENGTH, VOCABULARY = 3, 4, 24
STACK = Backbone(width=16, layers=1, heads=2, mlp_ratio=1)
MODEL = Model(chunk_length=LENGTH, decoder=STACK, encoder=STACK)
TOKENS = np.random.default_rng(1).integers(6, VOCABULARY, (3, LENGTH)).astype(np.int32)
REAL = np.ones(TOKENS.shape, bool)


def module_of(name, **dials):
    config = Config(data=Data(vocab_size=VOCABULARY, sequence_length=CHUNKS * LENGTH), model=MODEL)
    dials = {**PEERS[name].tiny, **dials}
    return build(config, Stage(family=name, dials=dials, objectives={"next_token": 1.0}))


def variables_of(module, draw, sharp=1):
    """Drawn weights; a final norm bounds the logits, which a sharp head makes larger."""
    variables = draw(module, TOKENS, REAL, method="encode")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * (sharp if "head" in str(path) else 1), variables
    )


@pytest.fixture(scope="module")
def crammed(draw, quick):
    """A write of Cramming as it is by default, compiled once."""
    module = module_of("cramming")
    variables = variables_of(module, draw)
    program = quick(lambda *args: module.apply(variables, *args, method="encode")[VECTORS])
    return lambda tokens=TOKENS, valid=REAL: program(tokens, valid)


def written(quick, module, variables, tokens=TOKENS, valid=REAL):
    program = quick(lambda *args: module.apply(variables, *args, method="encode")[VECTORS])
    return program(tokens, valid)


def nats(quick, module, variables, vectors, tokens=TOKENS, valid=REAL):
    program = quick(lambda *args: module.apply(variables, *args, method="text_nats"))
    return program(vectors, tokens, valid)


@pytest.mark.slow
def test_cramming_with_one_vector_and_plain_steps_is_memory_tokens(draw, quick):
    """A lattice equality, bit by bit."""
    tokens = module_of("memorytokens")
    other = module_of("cramming", **dataclasses.asdict(tokens.dials))
    variables = variables_of(tokens, draw)
    found = written(quick, other, variables), written(quick, tokens, variables)
    assert np.array_equal(*found)


@pytest.mark.slow
def test_a_step_is_the_gradient_of_the_mean_nats(draw, quick):
    """One plain step against the loss of the language model, written out."""
    module = module_of("cramming", plain=True, steps=1, rate=0.5)
    variables = variables_of(module, draw)
    first = np.broadcast_to(variables["params"]["first"], (3, 2, 16))

    def loss(vectors):
        def run(module, vectors):
            x = jnp.concatenate([vectors, module.embed(TOKENS[:, :-1])], axis=1)
            return module.head(module.backbone(x)[:, 1:])

        logits = module.apply(variables, vectors, method=run)
        return optax.softmax_cross_entropy_with_integer_labels(logits, TOKENS).mean(1).sum()

    expected = first - 0.5 * quick(jax.grad(loss))(first)
    np.testing.assert_allclose(written(quick, module, variables), expected, atol=1e-5)


@pytest.mark.slow
def test_texts_of_a_batch_are_optimised_alone(crammed):
    together, alone = crammed(), crammed(TOKENS[1:2], REAL[1:2])
    np.testing.assert_allclose(together[1:2], alone, atol=1e-4)


@pytest.mark.slow
def test_no_gradient_passes_through_the_steps(draw, quick):
    """The gradient outside the vectors is exactly 0."""
    module = module_of("cramming")
    variables = variables_of(module, draw)

    def total(variables):
        return module.apply(variables, TOKENS, REAL, method="encode")[VECTORS].sum()

    gradients = quick(jax.grad(total))(variables)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))


def test_padding_is_no_part_of_the_text(crammed):
    """Neither on the right nor on the left, and what stands there does not matter."""
    valid = np.broadcast_to(np.arange(LENGTH) < 3, TOKENS.shape)
    right = crammed(TOKENS, valid)
    other = TOKENS.copy()
    other[:, 3] = 7
    assert np.array_equal(right, crammed(other, valid))
    np.testing.assert_allclose(
        crammed(np.roll(TOKENS, 1, axis=1), valid[:, ::-1]), right, atol=1e-5
    )
    assert np.isfinite(crammed(TOKENS, np.zeros_like(valid))).all()


@pytest.mark.slow
def test_a_text_of_one_token_is_held(draw, quick):
    """Below 0.01 nats."""
    module = module_of("cramming", steps=100, rate=0.1)
    variables = variables_of(module, draw, sharp=8)
    valid = np.broadcast_to(np.arange(LENGTH) < 1, TOKENS.shape)
    vectors = written(quick, module, variables, TOKENS, valid)
    lost, exact = nats(quick, module, variables, vectors, TOKENS, valid)
    assert lost.max() < 0.01
    assert exact.all()


@pytest.mark.slow
def test_an_exact_text_is_left_as_it_is(draw, quick):
    """And greedy decoding reproduces it: both kinds of exactness are one."""
    many, more = (
        module_of("memorytokens", steps=steps, rate=0.5, warmup=0, vectors=4)
        for steps in (200, 240)
    )
    variables = variables_of(many, draw, sharp=5)
    vectors, later = (written(quick, module, variables) for module in (many, more))
    exact = nats(quick, many, variables, vectors)[1]
    assert exact.any()
    assert np.array_equal(vectors[exact], later[exact])
    text = np.zeros_like(TOKENS)

    def run(module, text):
        x = jnp.concatenate([vectors, module.embed(text[:, :-1])], axis=1)
        return jnp.argmax(module.head(module.backbone(x)[:, 3:]), axis=-1)

    program = quick(lambda text: many.apply(variables, text, method=run))
    for at in range(LENGTH):
        text[:, at] = program(text)[:, at]
    assert np.array_equal((text == TOKENS).all(axis=1), exact)


@pytest.mark.slow
def test_a_write_that_shares_rows_is_seen(draw, quick):
    """T9 of the common tests fails where a text reads the others of its batch."""
    module = module_of("memorytokens", steps=1)

    class Shared(type(module)):
        """Faulty: the vectors are those of the mean text of the batch."""

        def encode(self, tokens, valid):
            vectors = super().encode(tokens, valid)[VECTORS]
            return {VECTORS: jnp.broadcast_to(vectors.mean(axis=0), vectors.shape)}

    variables = variables_of(module, draw)
    faulty = Shared(module.config, module.chunks, module.vocab_size, module.dials)
    other = TOKENS.copy()
    other[1] = 7
    program = quick(lambda *args: faulty.apply(variables, *args, method="encode")[VECTORS])
    assert not np.array_equal(program(TOKENS, REAL)[0], program(other, REAL)[0])
