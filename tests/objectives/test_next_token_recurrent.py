"""The objective of recurrent memory: which tokens count, and that their nats are those of the
model's logits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from memjax.config import Backbone, Model, Stage
from memjax.models import RecurrentMemory
from memjax.objectives import Batch, SpecialIds, score, total
from memjax.testing.families import weights_of

IDS = SpecialIds()
CHUNKS, LENGTH, VOCABULARY = 3, 4, 24
MODEL = Model(chunk_length=LENGTH, decoder=Backbone(width=8, layers=1, heads=2, mlp_ratio=1))
MODULE = RecurrentMemory(MODEL, CHUNKS, VOCABULARY)
PUBLISHED = RecurrentMemory(
    dataclasses.replace(MODEL, compat=("overwritten_write_slot",)), CHUNKS, VOCABULARY
)
ROWS = np.random.default_rng(0).integers(6, VOCABULARY, (2, CHUNKS * LENGTH)).astype(np.int32)
PADDED = np.where(np.arange(12) < np.array([[12], [6]]), ROWS, IDS.pad)
STAGE, OLD = (
    Stage(family="recurrent_memory"),
    Stage(family="recurrent_memory", compat=("unscored_first_tokens",)),
)
ALL = [[[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]], [[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]]
BUT_FIRST = [[[0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]], [[0, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]]]


@pytest.mark.parametrize(
    ("module", "stage", "expected"),
    [(MODULE, STAGE, ALL), (MODULE, OLD, BUT_FIRST), (PUBLISHED, STAGE, BUT_FIRST)],
    ids=["every token", "unscored first tokens", "overwritten write slot"],
)
def test_every_token_counts_and_as_published_all_but_each_chunks_first(
    module, stage, expected, quick, draw
):
    variables = draw(module, PADDED.reshape(2, CHUNKS, LENGTH))

    def scored(rows):
        return score(module, variables, Batch(rows), ["next_token"], IDS, stage, None)["next_token"]

    scores = quick(scored)(PADDED)
    assert scores.weight.tolist() == expected
    assert (
        weights_of(module, Batch(jnp.asarray(PADDED)), ["next_token"], IDS, stage)[
            "next_token"
        ].tolist()
        == expected
    )
    assert float(total(scores).count) == np.sum(expected)
    assert np.array_equal(scores.labels, PADDED.reshape(2, CHUNKS, LENGTH))


def test_nats_are_those_of_the_models_logits_on_masked_rows(quick, draw):
    tokens = PADDED.reshape(2, CHUNKS, LENGTH)
    variables = draw(MODULE, tokens)

    @quick
    def both(rows):
        scores = score(MODULE, variables, Batch(rows), ["next_token"], IDS, STAGE, None)[
            "next_token"
        ]
        return scores, MODULE.apply(variables, tokens, tokens != IDS.pad)

    scores, logits = both(PADDED)
    at_label = np.take_along_axis(logits, tokens[..., None], -1)[..., 0]
    np.testing.assert_allclose(scores.nats, np.log(np.exp(logits).sum(-1)) - at_label, atol=2e-5)
    assert np.array_equal(scores.is_argmax, logits.argmax(-1) == tokens)


def test_a_row_that_is_no_whole_number_of_chunks_is_refused():
    with pytest.raises(
        ValueError, match="chunk_length: got 4, expected a divisor of the 11 tokens"
    ):
        weights_of(MODULE, Batch(jnp.asarray(ROWS[:, :11])), ["next_token"], IDS, STAGE)


@pytest.mark.slow
def test_what_was_read_a_chunk_ago_is_learned_through_the_state(quick, draw):
    """Rows of one repeated token: that it comes again in the second chunk can be known from the
    state alone."""
    model = dataclasses.replace(
        MODEL, chunk_length=2, decoder=dataclasses.replace(MODEL.decoder, width=16)
    )
    module, rows = (
        RecurrentMemory(model, 2, VOCABULARY),
        jnp.repeat(jnp.arange(6, 14)[:, None], 4, axis=1),
    )
    optimizer = optax.adam(0.02)

    def nats(variables):
        return score(module, variables, Batch(rows), ["next_token"], IDS, STAGE, None)[
            "next_token"
        ].nats

    @quick
    def train(variables):
        def step(carry, _):
            variables, state = carry
            updates, state = optimizer.update(jax.grad(lambda v: nats(v).mean())(variables), state)
            return (optax.apply_updates(variables, updates), state), None

        (variables, _), _ = jax.lax.scan(step, (variables, optimizer.init(variables)), length=100)
        return nats(variables)

    found = train(draw(module, rows.reshape(8, 2, 2)))
    # The row's first token is one of eight; those of the second chunk are known.
    np.testing.assert_allclose(found[:, 0, 0].mean(), np.log(8), atol=0.1)
    assert np.all(found[:, 1] < 0.1)
