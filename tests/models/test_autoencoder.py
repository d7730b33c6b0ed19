"""Autoencoder: what its decoder is given, and that it is given nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Model
from memjax.models import Autoencoder, unroll

LENGTH, VOCABULARY = 4, 24
SMALL = {"layers": 1, "heads": 2, "mlp_ratio": 1}
NARROW, WIDE = Backbone(kind="mixer", width=8, **SMALL), Backbone(width=12, **SMALL)
MODELS = {
    "unroll": Model(chunk_length=LENGTH, encoder=NARROW, reconstructor=NARROW),
    "unroll-bridge-vectors": Model(
        chunk_length=LENGTH,
        encoder=NARROW,
        reconstructor=WIDE,
        readout="memory_tokens",
        memory_vectors=2,
    ),
    "repeat-vectors": Model(
        chunk_length=LENGTH,
        encoder=NARROW,
        reconstructor=NARROW,
        readout="memory_tokens",
        memory_vectors=2,
        expansion="repeat",
    ),
}
TOKENS = np.random.default_rng(0).integers(1, VOCABULARY, (3, LENGTH))
ALL = np.ones(TOKENS.shape, bool)


@pytest.mark.parametrize(("length", "width"), [(4, 8), (6, 6), (9, 6), (20, 4), (3, 7)])
def test_unroll_is_the_loop_of_the_reference_and_wraps(length, width):
    memory = np.random.default_rng(0).normal(size=(2, width)).astype(np.float32)
    expected = np.zeros((2, length, width // 2), np.float32)
    for t in range(length):
        for j in range(width // 2):
            expected[:, t, j] = memory[:, (t + j) % width]
    assert np.array_equal(unroll(memory, length), expected)


def test_windows_all_differ_up_to_the_width_and_repeat_after_it():
    windows = np.asarray(unroll(np.arange(6.0)[None], 8))[0]
    assert len(np.unique(windows[:6], axis=0)) == 6
    assert np.array_equal(windows[6:], windows[:2])


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def parts(name, quick, draw):
    module = Autoencoder(MODELS[name], VOCABULARY)
    variables = draw(module, TOKENS)

    @quick
    def whole(tokens, valid):
        memory = module.apply(variables, tokens, valid, method="encode")
        return (
            module.apply(variables, tokens, valid),
            module.apply(variables, tokens, valid, method="score"),
            memory,
        )

    return whole, quick(lambda memory: module.apply(variables, memory, method="decode"))


@pytest.mark.quick_cases("unroll-bridge-vectors")
def test_logits_are_decoded_from_the_memory_alone(parts):
    whole, decode = parts
    logits, _, memory = whole(TOKENS, ALL)
    assert logits.shape == (3, LENGTH, VOCABULARY)
    np.testing.assert_allclose(decode(memory), logits, atol=1e-5)


def test_score_is_that_of_each_token_at_its_own_position(parts):
    whole, _ = parts
    logits, (nats, correct), _ = whole(TOKENS, ALL)
    at_token = np.take_along_axis(logits, TOKENS[..., None], -1)[..., 0]
    np.testing.assert_allclose(nats, np.log(np.exp(logits).sum(-1)) - at_token, atol=1e-5)
    assert np.array_equal(correct, logits.argmax(-1) == TOKENS)


def test_padding_is_not_read(parts):
    whole, _ = parts
    valid = np.array([[1, 1, 1, 0]] * 3, bool)
    (logits, _, _), (other, _, _) = whole(TOKENS, valid), whole(np.where(valid, TOKENS, 0), valid)
    assert np.array_equal(logits, other)


# Two vectors of 12 channels in windows of 12: the second vector enters the window at the second
# position.
FIRST_HEARD = {"unroll": [0], "unroll-bridge-vectors": [0, 1], "repeat-vectors": [0, 2]}


def test_a_vector_is_heard_from_its_first_position_on(parts, name):
    whole, decode = parts
    _, _, memory = whole(TOKENS, ALL)
    before = decode(memory)
    for vector, first in enumerate(FIRST_HEARD[name]):
        other = memory.copy()
        other[:, vector, 0] += 1
        changed = np.any(decode(other) != before, axis=-1)
        assert changed.tolist() == [[t >= first for t in range(LENGTH)]] * 3


@pytest.mark.parametrize(
    ("length", "width", "read"), [(8, 8, 8), (5, 8, 8), (4, 8, 7), (32, 128, 95), (4, 24, 15)]
)
def test_windows_of_a_short_chunk_leave_the_end_of_a_wide_memory_unread(length, width, read):
    """As in the reference; width / 2 + length - 1 channels are read."""
    assert len(np.unique(unroll(np.arange(width)[None], length))) == read


def test_repeated_vector_is_the_input_at_all_its_positions(draw, quick):
    model = MODELS["repeat-vectors"]
    module = Autoencoder(model, VOCABULARY)
    variables = draw(module, TOKENS)
    # With every block silent and unit gains the backbone only normalises what it is given.
    variables["params"]["backbone"]["blocks"] = jax.tree.map(
        np.zeros_like, variables["params"]["backbone"]["blocks"]
    )
    variables["params"]["backbone"]["norm"] = {"scale": np.ones(8, np.float32)}
    memory = np.random.default_rng(1).normal(size=(3, 2, 8)).astype(np.float32)
    hidden = quick(lambda m: module.apply(variables, m, method="hidden"))(memory)
    normed = memory / np.sqrt((memory**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(hidden, normed[:, [0, 0, 1, 1]], atol=1e-5)


def test_logits_are_float32_in_bfloat16():
    module = Autoencoder(
        Model(chunk_length=LENGTH, encoder=NARROW, reconstructor=WIDE, dtype="bfloat16"), VOCABULARY
    )
    logits, variables = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), TOKENS))
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
