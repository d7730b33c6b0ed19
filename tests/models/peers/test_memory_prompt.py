"""MemoryPrompt: a prompt that an LSTM writes, and a language model that stays as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from memjax.config import Backbone, Model, match_rules
from memjax.models.memory import VALID
from memjax.models.peers import PEERS
from memjax.models.peers.memory_prompt import CELL, PROMPT, Dials, MemoryPrompt, prompt_size

RNG = np.random.default_rng(3)
BATCH, CHUNKS, LENGTH, VOCABULARY, WIDTH = 2, 3, 4, 24, 16
MODEL = Model(chunk_length=LENGTH, decoder=Backbone(width=WIDTH, layers=2, heads=2, mlp_ratio=1))
DIALS = Dials(vectors=2, hidden=8, rank=4)
MODULE = MemoryPrompt(MODEL, CHUNKS, VOCABULARY, dials=DIALS)
TOKENS = RNG.integers(6, VOCABULARY, (BATCH, CHUNKS, LENGTH)).astype(np.int32)
REAL = np.ones((BATCH, LENGTH), bool)
STATES = RNG.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def variables(draw):
    return draw(MODULE, TOKENS)


@pytest.fixture(scope="module")
def write(variables, quick):
    program = quick(
        lambda leaves, t: MODULE.apply(variables, leaves, t, jnp.asarray(REAL), method="update")
    )
    return lambda leaves, tokens=TOKENS[:, 0]: program(leaves, tokens)


def none():
    zeros = np.zeros((BATCH, 2, WIDTH), np.float32)
    return {PROMPT: zeros, CELL: zeros, VALID: np.zeros((BATCH, 1), bool)}


@pytest.mark.slow
def test_the_first_chunk_is_read_by_the_language_model_alone(variables, quick):
    """B.11 (1): what stands in the prompt does not matter, and the states are those without it."""

    def run(model, leaves):
        x = model.embed_tokens(TOKENS[:, 0], REAL)
        return model.read(leaves, x, TOKENS[:, 0], REAL), model.backbone(x)

    program = quick(lambda leaves: MODULE.apply(variables, leaves, method=run))
    one, plain = program(none())
    two, _ = program({**none(), PROMPT: np.ones((BATCH, 2, WIDTH), np.float32)})
    assert np.array_equal(one, two)
    np.testing.assert_allclose(one, plain, atol=1e-6)


def test_the_language_model_is_frozen(variables):
    """B.11 (2): the network, the LSTM and the marks are trained."""
    rules = PEERS["memoryprompt"].trainable
    flat = flatten_dict(variables["params"], sep="/")
    frozen = {path.split("/")[0] for path in flat if not match_rules(rules, path, "rules")}
    assert frozen == {"backbone", "embed", "head"}


@pytest.mark.slow
def test_texts_hardly_matter_before_training(quick):
    """B.11 (3)."""
    tokens = jnp.asarray(TOKENS)

    def run(key):
        found = MODULE.init(key, tokens)
        u = MODULE.apply(found, 10 * STATES, REAL, method="summarise")
        return u, MODULE.apply(found, tokens, method="fold").leaves[PROMPT]

    u, prompts = quick(run)(jax.random.key(0))
    assert np.abs(u).max() < 1e-2
    assert np.abs(prompts[0] - prompts[1]).max() < 1e-2


def test_the_state_is_as_large_after_any_number_of_chunks():
    """B.11 (4)."""
    assert MODULE.ledger(1) == MODULE.ledger(9) == dict.fromkeys((PROMPT, CELL), (32, 32))


def test_the_last_token_alone_is_remembered(variables, quick):
    """B.11 (5): the gradient at all other states is exactly 0; padding does not count."""

    def u(states, valid):
        return MODULE.apply(variables, states, valid, method="summarise").sum(axis=0)

    slope = quick(jax.jacrev(u))
    for last in (LENGTH - 1, 1):
        valid = np.broadcast_to(np.arange(LENGTH) <= last, REAL.shape)
        reached = slope(STATES, valid).any(axis=(0, 3))
        assert np.array_equal(reached, np.broadcast_to(np.arange(LENGTH) == last, REAL.shape))


def test_the_cell_is_carried(write):
    """B.11 (6): without it the next prompt differs, and the one that stands already does not."""
    after = write(none())
    reset = {**after, CELL: np.zeros_like(after[CELL])}
    one, two = (write(leaves, TOKENS[:, 1]) for leaves in (after, reset))
    assert not np.array_equal(one[PROMPT], two[PROMPT])
    # c is the only difference: the gates are the same, and the forget gate is below 1.
    kept = (one[CELL] - two[CELL]) / after[CELL]
    assert (kept > 0).all()
    assert (kept < 1).all()


@pytest.mark.slow
def test_a_full_matrix_of_low_rank_is_the_product(variables, write, quick):
    """The published form, with `rank` of 0."""
    params = dict(variables["params"])
    into = params.pop("gates_in")["kernel"]
    params["gates"] = {**params["gates"], "kernel": into @ params["gates"]["kernel"]}
    full = MODULE.clone(dials=Dials(vectors=2, hidden=8, rank=0))
    leaves = {**write(none())}
    found = quick(
        lambda leaves: full.apply({"params": params}, leaves, TOKENS[:, 1], REAL, method="update")
    )(leaves)
    wanted = write(leaves, TOKENS[:, 1])
    for name in (PROMPT, CELL):
        np.testing.assert_allclose(found[name], wanted[name], atol=1e-5)


def test_the_size_of_prompts_leaves_out_chunks_without_one():
    prompt = np.stack([np.full((2, WIDTH), -0.5), np.full((2, WIDTH), 9.0)])
    assert prompt_size(prompt, np.array([[True], [False]])) == 0.5
    assert prompt_size(prompt, np.zeros((2, 1), bool)) == 0


class ScoresBehindItself(MemoryPrompt):
    """A fault: a chunk is decoded behind the prompt that it has written."""

    def seen(self, prefixes, visible):
        return super().seen(prefixes, visible + 1)


@pytest.mark.slow
def test_the_common_test_finds_a_prompt_of_the_chunk_itself(variables, quick):
    """T1 would fail."""
    other = TOKENS.copy()
    other[:, 1, -1] = 7  # No score of chunk 1 reads its last token.
    for kind, same in ((MemoryPrompt, True), (ScoresBehindItself, False)):
        module = kind(MODEL, CHUNKS, VOCABULARY, dials=DIALS)
        program = quick(module.apply)
        one, two = (program(variables, tokens)[:, 1, :-1] for tokens in (TOKENS, other))
        assert np.array_equal(one, two) == same
