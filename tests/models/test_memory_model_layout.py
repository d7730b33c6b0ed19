"""Where tokens stand after their slots, and what padding on the left changes: nothing."""

import dataclasses

import numpy as np
import pytest

from memjax.config import Backbone, Model
from memjax.models import MemoryModel

LENGTH, VOCABULARY = 4, 24
BACKBONE = Backbone(width=8, layers=2, heads=2, mlp_ratio=1)
FIXED = Model(
    chunk_length=LENGTH,
    encoder=dataclasses.replace(BACKBONE, layers=1),
    decoder=BACKBONE,
    token_positions=False,
    chunk_positions=False,
)
VARIABLE = dataclasses.replace(FIXED, layout="variable")
TOKENS = np.random.default_rng(0).integers(1, VOCABULARY, (2, 5, LENGTH))
MEMORIES = np.random.default_rng(1).normal(size=(2, 4, 1, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def variables(draw):
    """Without learned positions the weights fit any number of chunks."""
    return draw(MemoryModel(FIXED, 5, VOCABULARY), TOKENS)


def test_variable_layout_does_not_depend_on_the_number_of_empty_slots(quick, variables):
    @quick
    def two_in_rows_of_two_three_and_five(memories):
        few, more, many = (MemoryModel(VARIABLE, chunks, VOCABULARY) for chunks in (2, 3, 5))
        return [
            m.apply(variables, TOKENS[:, :2], memories, method="decode") for m in (few, more, many)
        ]

    few, more, many = two_in_rows_of_two_three_and_five(MEMORIES)
    np.testing.assert_allclose(few, more, atol=1e-5)
    np.testing.assert_allclose(few, many, atol=1e-5)


def test_fixed_layout_puts_tokens_after_all_slots(quick, variables):
    """Attention sees distances: the layouts agree where there is no memory to be far from, or no
    empty slot."""

    @quick
    def both(memories):
        return [
            MemoryModel(m, 5, VOCABULARY).apply(variables, TOKENS, memories, method="decode")
            for m in (FIXED, VARIABLE)
        ]

    fixed, variable = both(MEMORIES)
    for chunk, agree in enumerate([True, False, False, False, True]):
        assert np.allclose(fixed[:, chunk], variable[:, chunk], atol=1e-4) == agree


@pytest.mark.parametrize("settings", [FIXED, VARIABLE], ids=["fixed", "variable"])
def test_padding_on_the_left_of_a_chunk_changes_nothing(quick, variables, settings):
    """Memory and logits of three tokens are the same in a chunk of three and behind a pad in a
    chunk of four."""
    short = TOKENS[:, :3, :3]
    padded = np.pad(short, ((0, 0), (0, 0), (1, 0)))
    unpadded_model = MemoryModel(dataclasses.replace(settings, chunk_length=3), 3, VOCABULARY)
    padded_model = MemoryModel(settings, 3, VOCABULARY)

    @quick
    def both(short, padded):
        return unpadded_model.apply(variables, short), padded_model.apply(
            variables, padded, padded > 0
        )

    a, b = both(short, padded)
    np.testing.assert_allclose(b[:, :, 1:], a, atol=1e-5)


def test_learned_token_positions_are_places_in_the_chunk(quick, draw):
    """The first token of chunks with the same content everywhere differs from the second by its
    place alone."""
    settings = dataclasses.replace(
        FIXED, token_positions=True, decoder=dataclasses.replace(BACKBONE, layers=1)
    )
    model = MemoryModel(settings, 2, VOCABULARY, memory=False)
    same = np.full((1, 2, LENGTH), 3)
    variables = draw(model, same)
    logits = quick(lambda: model.apply(variables, same))()[0]
    assert np.array_equal(logits[0], logits[1])
    assert np.all(np.abs(np.diff(logits[0], axis=0)).max(-1) > 1e-3)


def padded_row(settings, variables, quick):
    """Logits of the last of two chunks, in a row of their own and behind a chunk of padding."""
    chunks = TOKENS[:, :2]
    padded = np.concatenate([np.zeros_like(chunks[:, :1]), chunks], axis=1)

    @quick
    def both(chunks, padded):
        alone = MemoryModel(settings, 2, VOCABULARY).apply(variables, chunks)
        behind = MemoryModel(settings, 3, VOCABULARY).apply(variables, padded, padded > 0)
        return alone[:, 1], behind[:, 2]

    return both(chunks, padded)


def test_a_padded_chunk_in_front_changes_nothing_in_the_variable_layout(quick, variables):
    alone, behind = padded_row(VARIABLE, variables, quick)
    np.testing.assert_allclose(behind, alone, atol=1e-5)
