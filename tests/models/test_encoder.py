"""Tokens to memories."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Model
from memjax.models import Encoder
from memjax.models.encoder import fold, unfold

LENGTH, VOCABULARY = 4, 24
TRANSFORMER = Backbone(width=8, layers=2, heads=2, mlp_ratio=2)
MIXER = Backbone(kind="mixer", width=8, layers=2, heads=2, channel_kernel=2, mlp_ratio=2)
MODELS = {
    "transformer-last": Model(chunk_length=LENGTH, encoder=TRANSFORMER),
    "transformer-second": Model(chunk_length=LENGTH, encoder=TRANSFORMER, readout="second_to_last"),
    "transformer-tokens": Model(
        chunk_length=LENGTH, encoder=TRANSFORMER, readout="memory_tokens", memory_vectors=3
    ),
    "mixer-last": Model(chunk_length=LENGTH, encoder=MIXER, bottleneck=3),
    "mixer-second": Model(chunk_length=LENGTH, encoder=MIXER, readout="second_to_last"),
    "mixer-tokens": Model(
        chunk_length=LENGTH, encoder=MIXER, readout="memory_tokens", memory_vectors=2
    ),
}
TOKENS = np.random.default_rng(0).integers(1, VOCABULARY, (20, LENGTH))
ALL = np.ones(TOKENS.shape, bool)


@pytest.fixture(scope="module", params=MODELS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def encode(name, quick, draw):
    encoder = Encoder(MODELS[name], VOCABULARY)
    variables = draw(encoder, TOKENS)
    return quick(lambda tokens, valid: encoder.apply(variables, tokens, valid))


def changed(tokens, position):
    tokens = tokens.copy()
    tokens[:, position] = (tokens[:, position] + 5) % VOCABULARY
    return tokens


@pytest.mark.quick_cases("transformer-tokens", "mixer-last", "mixer-second")
def test_memory_has_read_the_whole_chunk_or_all_but_its_last_token(encode, name):
    before = encode(TOKENS, ALL)
    assert before.shape == (20, MODELS[name].memory_vectors, 8)
    for position in range(LENGTH):
        after = encode(changed(TOKENS, position), ALL)
        if "second" in name and position == LENGTH - 1:
            assert np.array_equal(before, after)
        else:
            assert np.all(np.any(before != after, axis=-1))


def test_vectors_of_a_chunk_differ(encode, name):
    memory = encode(TOKENS, ALL)
    gaps = np.abs(memory[:, :, None] - memory[:, None]).max(-1)
    assert np.all(gaps[:, ~np.eye(MODELS[name].memory_vectors, dtype=bool)] > 1e-3)


def test_bottleneck_leaves_as_many_dimensions_as_it_is_wide(encode, name):
    memories = encode(TOKENS, ALL)[:, 0]
    singular = np.linalg.svd(memories - memories.mean(0), compute_uv=False)
    assert (singular > 1e-4 * singular[0]).sum() == (MODELS[name].bottleneck or 8)


@pytest.mark.parametrize("valid", [[0, 1, 1, 1], [1, 1, 1, 0], [0, 1, 1, 0]], ids=str)
def test_content_of_padding_is_never_read(encode, valid):
    valid = np.broadcast_to(np.array(valid, bool), TOKENS.shape)
    before = encode(TOKENS, valid)
    assert np.array_equal(before, encode(np.where(valid, TOKENS, 0), valid))
    assert not np.array_equal(before, encode(TOKENS, ALL))


def test_chunk_without_a_token_gives_a_finite_memory(encode):
    assert np.all(np.isfinite(encode(TOKENS, ~ALL)))


@pytest.mark.parametrize("name", ["transformer-last", "transformer-second", "transformer-tokens"])
def test_padding_changes_no_memory_of_a_transformer(name, quick, draw):
    encoder = Encoder(MODELS[name], VOCABULARY)
    variables = draw(encoder, TOKENS)
    left = np.pad(TOKENS[:, :3], ((0, 0), (1, 0)))
    right = np.pad(TOKENS[:, :3], ((0, 0), (0, 1)))

    @quick
    def memories(left, right, short):
        padded = [encoder.apply(variables, tokens, tokens > 0) for tokens in (left, right)]
        return *padded, encoder.apply(variables, short)

    from_left, from_right, short = memories(left, right, TOKENS[:, :3])
    np.testing.assert_allclose(from_left, short, atol=1e-5)
    np.testing.assert_allclose(from_right, short, atol=1e-5)


def test_folding_keeps_chunks_of_a_row_together():
    x = jnp.arange(2 * 3 * 4).reshape(2, 3, 4)
    assert fold(x)[1].tolist() == [4, 5, 6, 7]
    assert np.array_equal(unfold(fold(x), 2), x)


def test_positions_the_backbone_runs_over_include_memory_tokens():
    lengths = {name: Encoder(model, VOCABULARY).length for name, model in MODELS.items()}
    assert lengths["transformer-last"] == 4
    assert lengths["transformer-tokens"] == 7
    assert lengths["mixer-tokens"] == 6


def test_parameters_are_float32_whatever_is_computed_in():
    model = dataclasses.replace(
        MODELS["mixer-last"], dtype="bfloat16", readout="memory_tokens", memory_vectors=2
    )
    memory, variables = jax.eval_shape(
        lambda: Encoder(model, VOCABULARY).init_with_output(jax.random.key(0), TOKENS)
    )
    assert memory.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_second_to_last_of_a_single_token_is_that_token(quick, draw):
    encoder = Encoder(MODELS["transformer-second"], VOCABULARY)
    variables = draw(encoder, TOKENS)
    encode = quick(lambda tokens, valid: encoder.apply(variables, tokens, valid))
    first, last = np.zeros_like(TOKENS), np.zeros_like(TOKENS)
    first[:, 0] = last[:, -1] = TOKENS[:, 0]
    np.testing.assert_allclose(encode(first, first > 0), encode(last, last > 0), atol=1e-5)
