"""Objectives on a model: how often it is called, what it is shown, and what the sums are."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memjax.config import Backbone, Model
from memjax.layers import Backbone as BackboneModule
from memjax.models import EMPTY, Autoencoder, Encoder, MemoryModel
from memjax.objectives import (
    REQUESTS,
    MetricSum,
    Scores,
    SpecialIds,
    score,
    total,
    weighted_loss,
)
from memjax.testing.families import counts_of
from memjax.testing.requests import slot_table

IDS = SpecialIds()
CHUNKS, LENGTH, VOCABULARY = 4, 3, 24
SMALL = {"width": 8, "layers": 1, "heads": 2, "mlp_ratio": 1}
MODEL = Model(
    chunk_length=LENGTH,
    encoder=Backbone(kind="mixer", **SMALL),
    decoder=Backbone(**SMALL),
    reconstructor=Backbone(**SMALL),
)
MEMORY = MemoryModel(MODEL, CHUNKS, VOCABULARY)
CONTROL = MemoryModel(MODEL, CHUNKS, VOCABULARY, memory=False)
AUTOENCODER = Autoencoder(MODEL, VOCABULARY)
NAMES = ("next_token", "copy", "blank_copy")
ROWS = np.random.default_rng(0).integers(6, VOCABULARY, (2, CHUNKS * LENGTH)).astype(np.int32)
PADDED = np.where(np.arange(12) < np.array([[12], [4]]), ROWS, IDS.pad)
IN_CHUNKS = ROWS.reshape(2, CHUNKS, LENGTH)


@pytest.fixture(scope="module")
def variables(draw):
    return {
        "memory": draw(MEMORY, IN_CHUNKS),
        "control": draw(CONTROL, IN_CHUNKS),
        "autoencoder": draw(AUTOENCODER, IN_CHUNKS[0]),
    }


@pytest.fixture(scope="module")
def nats(quick, variables):
    """Nats of every objective of the model and of the control, for rows."""
    memory = quick(lambda rows: score(MEMORY, variables["memory"], rows, NAMES, IDS))
    control = quick(lambda rows: score(CONTROL, variables["control"], rows, NAMES, IDS))
    return {"memory": memory, "control": control}


def calls_of(module, names, variables):
    """Shapes of the tokens given to the encoder, and of the sequences given to the decoder's
    backbone."""
    encoder, decoder = [], []

    def spy(call, args, kwargs, context):
        if context.method_name == "__call__" and isinstance(context.module, Encoder):
            encoder.append(args[0].shape)
        in_encoder = isinstance(context.module.parent, Encoder)
        if (
            context.method_name == "__call__"
            and isinstance(context.module, BackboneModule)
            and not in_encoder
        ):
            decoder.append(args[0].shape)
        return call(*args, **kwargs)

    with nn.intercept_methods(spy):
        jax.eval_shape(lambda rows: score(module, variables, rows, names, IDS), jnp.asarray(ROWS))
    return encoder, decoder


@pytest.mark.parametrize(
    ("names", "encoded", "entries", "decoded"),
    [
        (["next_token"], 3, 3, 4),
        (["copy"], 2, 3, 2),
        (["blank_copy"], 2, 2, 2),
        (["next_token", "copy"], 3, 6, 6),
        # Copies share a prefix.
        (NAMES, 3, 6, 8),
    ],
    ids=str,
)
def test_one_call_of_encoder_and_decoder_for_what_is_needed_and_no_more(
    variables, names, encoded, entries, decoded
):
    encoder, decoder = calls_of(MEMORY, names, variables["memory"])
    assert encoder == [(2 * encoded, LENGTH)]
    assert decoder == [(2, entries + decoded * LENGTH, 8)]


def test_control_encodes_nothing(variables):
    encoder, decoder = calls_of(CONTROL, NAMES, variables["control"])
    assert encoder == []
    assert len(decoder) == 1


def test_autoencoder_runs_once_over_all_chunks(variables):
    encoder, decoder = calls_of(AUTOENCODER, ["reconstruction"], variables["autoencoder"])
    assert encoder == [(2 * CHUNKS, LENGTH)]
    assert decoder == [(2 * CHUNKS, LENGTH, 8)]


def other(chunk, position=slice(None)):
    rows = IN_CHUNKS.copy()
    rows[:, chunk, position] = 6 + (rows[:, chunk, position] - 5) % (VOCABULARY - 6)
    return rows.reshape(ROWS.shape)


@pytest.mark.parametrize("name", NAMES)
def test_combined_scores_are_separate_scores(quick, variables, nats, name):
    alone = quick(lambda rows: score(MEMORY, variables["memory"], rows, [name], IDS))(PADDED)[name]
    combined = nats["memory"](PADDED)[name]
    np.testing.assert_allclose(alone.nats, combined.nats, atol=1e-5)
    for field in ("is_argmax", "weight", "labels"):
        assert np.array_equal(getattr(alone, field), getattr(combined, field))


def test_scores_are_those_of_decode_on_the_requested_inputs(quick, variables, nats):
    """Reading on by `__call__`, fed the shifted row, with the labels picked from its logits."""
    shifted = np.concatenate([np.full((2, CHUNKS, 1), IDS.bos), IN_CHUNKS[:, :, :-1]], axis=2)

    @quick
    def logits(shifted, tokens):
        memories = MEMORY.apply(variables["memory"], tokens[:, :-1], method="encode")
        return MEMORY.apply(variables["memory"], shifted, memories, method="decode")

    found, expected = nats["memory"](ROWS)["next_token"], logits(shifted, IN_CHUNKS)
    at_label = np.take_along_axis(expected, IN_CHUNKS[..., None], -1)[..., 0]
    np.testing.assert_allclose(found.nats, np.log(np.exp(expected).sum(-1)) - at_label, atol=2e-5)
    assert np.array_equal(found.is_argmax, expected.argmax(-1) == IN_CHUNKS)
    assert np.array_equal(found.labels, IN_CHUNKS)


@pytest.fixture(scope="module")
def logits_of(quick, variables):
    """Logits of an objective's request with memories given apart from what the decoder is shown."""

    def run(name):
        def logits(shown, encoded):
            request = REQUESTS[name](shown.reshape(IN_CHUNKS.shape), IDS)
            memories = MEMORY.apply(
                variables["memory"], encoded.reshape(IN_CHUNKS.shape)[:, :-1], method="encode"
            )
            asked = (
                request.inputs,
                memories,
                slot_table(request, CHUNKS - 1),
                request.place,
                request.task,
            )
            return MEMORY.apply(variables["memory"], *asked, method="decode")

        return quick(logits)

    return {name: run(name) for name in NAMES}


def test_blank_copy_is_shown_no_token(logits_of):
    before = logits_of["blank_copy"](ROWS, ROWS)
    assert np.array_equal(before, logits_of["blank_copy"](ROWS[::-1], ROWS))
    assert not np.array_equal(before, logits_of["blank_copy"](ROWS, other(0)))
    assert not np.array_equal(before, logits_of["blank_copy"](ROWS, other(1)))
    assert np.array_equal(before, logits_of["blank_copy"](ROWS, other(2)))


@pytest.mark.parametrize("name", ["copy", "next_token"])
def test_a_target_is_shown_all_tokens_before_it_and_not_itself(logits_of, name):
    before = logits_of[name](ROWS, ROWS)
    for chunk in range(2):
        for t in range(LENGTH):
            after = logits_of[name](other(chunk, t), ROWS)
            changed = np.any(before != after, axis=-1)
            expected = np.zeros_like(changed)
            expected[:, chunk, t + 1 :] = True
            assert np.array_equal(changed, expected)


def test_control_cannot_blank_copy(quick, variables):
    """Its states do not depend on the row: every token is scored by one distribution for its
    place."""

    @quick
    def states(rows):
        request = REQUESTS["blank_copy"](rows.reshape(IN_CHUNKS.shape), IDS)
        asked = (request.inputs, None, slot_table(request, CHUNKS - 1), request.place, request.task)
        return CONTROL.apply(variables["control"], *asked, method="decode")

    assert np.array_equal(states(ROWS), states(other(0)))
    assert np.array_equal(states(ROWS), states(other(1)))


def test_control_reads_on_within_its_chunk_only(nats):
    before = nats["control"](ROWS)["next_token"].nats
    after = nats["control"](other(1))["next_token"].nats
    assert np.array_equal(before[:, [0, 2, 3]], after[:, [0, 2, 3]])
    assert np.all(before[:, 1] != after[:, 1])


def test_a_chunk_of_padding_is_no_memory(quick, variables, nats):
    """A row whose second chunk is padding is scored as one in which no slot holds that chunk;
    padding in the third is masked."""
    rows = IN_CHUNKS.copy()
    rows[:, 1] = rows[:, 2, 1:] = IDS.pad
    scores = nats["memory"](rows.reshape(ROWS.shape))["next_token"]

    @quick
    def without(rows):
        request = REQUESTS["next_token"](rows, IDS)
        memories = MEMORY.apply(
            variables["memory"], rows[:, :-1], rows[:, :-1] != IDS.pad, method="encode"
        )
        slots = slot_table(request, CHUNKS - 1)
        slots = np.where(slots == 1, EMPTY, slots)
        asked = (
            request.inputs,
            rows,
            memories,
            slots,
            request.place,
            request.task,
            None,
            request.inputs != IDS.pad,
        )
        return MEMORY.apply(variables["memory"], *asked, method="score")[0]

    np.testing.assert_allclose(scores.nats, without(rows), atol=1e-5)
    assert scores.weight[0].any(axis=-1).tolist() == [True, False, True, True]
    assert np.all(np.isfinite(scores.nats))


@pytest.fixture(scope="module")
def autoencoder_scores(quick, variables):
    return quick(
        lambda rows: score(AUTOENCODER, variables["autoencoder"], rows, ["reconstruction"], IDS)[
            "reconstruction"
        ]
    )


def test_reconstruction_scores_each_token_of_each_chunk_at_its_place(
    quick, variables, autoencoder_scores
):
    found = autoencoder_scores(ROWS)
    logits = quick(lambda tokens: AUTOENCODER.apply(variables["autoencoder"], tokens))(
        ROWS.reshape(-1, LENGTH)
    )
    at_label = np.take_along_axis(logits, ROWS.reshape(-1, LENGTH)[..., None], -1)[..., 0]
    np.testing.assert_allclose(
        found.nats.reshape(-1, LENGTH), np.log(np.exp(logits).sum(-1)) - at_label, atol=2e-5
    )
    assert np.array_equal(found.labels, IN_CHUNKS)
    padded = autoencoder_scores(PADDED)
    assert np.array_equal(padded.weight, (PADDED != 0).reshape(IN_CHUNKS.shape))
    np.testing.assert_allclose(padded.nats[0], found.nats[0], atol=1e-6)


# Sums


def test_counts_are_those_of_the_scores(nats, autoencoder_scores):
    expected = {name: float(total(s).count) for name, s in nats["memory"](PADDED).items()}
    assert {
        name: float(n) for name, n in counts_of(MEMORY, jnp.asarray(PADDED), NAMES, IDS).items()
    } == expected
    assert expected == {"next_token": 16, "copy": 10, "blank_copy": 10}
    reconstruction = counts_of(AUTOENCODER, jnp.asarray(PADDED), ["reconstruction"], IDS)[
        "reconstruction"
    ]
    assert float(reconstruction) == float(total(autoencoder_scores(PADDED)).count) == 16


def test_total_sums_what_counts():
    scores = Scores(
        nats=np.array([[[1.0, 2.0], [4.0, 100.0]]]),
        is_argmax=np.array([[[True, False], [True, True]]]),
        weight=np.array([[[1.0, 1.0], [1.0, 0.0]]]),
        labels=np.zeros((1, 2, 2), int),
    )
    assert jax.tree.map(float, total(scores)) == MetricSum(nats=7.0, count=3.0, correct=2.0)


def test_loss_is_the_weighted_sum_of_means():
    terms = {
        "a": MetricSum(6.0, 3.0, 0.0),
        "b": MetricSum(5.0, 10.0, 0.0),
        "c": MetricSum(7.0, 0.0, 0.0),
    }
    assert weighted_loss(terms, {"a": 1.0, "b": 4.0}) == 1 * 2 + 4 * 0.5
    assert weighted_loss(terms, {"b": 1.0}) == 0.5
    # Without a token there is no mean; nothing is divided by zero.
    assert weighted_loss(terms | {"c": MetricSum(0.0, 0.0, 0.0)}, {"c": 3.0}) == 0


@given(st.lists(st.tuples(st.integers(0, 64), st.integers(1, 8)), min_size=1, max_size=6))
def test_loss_of_a_batch_is_the_sum_over_its_parts_by_the_whole_count(parts):
    terms = [{"a": MetricSum(float(nats), float(count), 0.0)} for nats, count in parts]
    whole = {"a": MetricSum(float(sum(n for n, _ in parts)), float(sum(c for _, c in parts)), 0.0)}
    count = {"a": whole["a"].count}
    together = sum(float(weighted_loss(term, {"a": 2.0}, count)) for term in terms)
    assert together == pytest.approx(float(weighted_loss(whole, {"a": 2.0})), rel=1e-5)


# Refusals


def test_unknown_objective_fails_with_those_there_are(variables):
    rows = jnp.asarray(ROWS)
    with pytest.raises(
        ValueError,
        match=r"of family memory_model has no objective 'clm'; it has next_token, copy,"
        r" plain_copy, blank_copy",
    ):
        score(MEMORY, variables["memory"], rows, ["copy", "clm"], IDS)
    with pytest.raises(
        ValueError, match=r"'reconstruction'; it has next_token, copy, plain_copy, blank_copy"
    ):
        counts_of(MEMORY, rows, ["reconstruction"], IDS)
    with pytest.raises(
        ValueError, match=r"autoencoder has no objective 'copy'; it has reconstruction"
    ):
        score(AUTOENCODER, variables["autoencoder"], rows, ["copy"], IDS)
    with pytest.raises(ValueError, match=r"family: 'Encoder', expected .* or one of autoencoder, "):
        score(Encoder(MODEL, VOCABULARY), {}, rows, ["copy"], IDS)


def test_row_that_is_no_whole_number_of_chunks_is_refused(variables):
    with pytest.raises(
        ValueError, match="chunk_length: got 3, expected a divisor of the 11 tokens"
    ):
        score(MEMORY, variables["memory"], jnp.asarray(ROWS[:, :11]), ["copy"], IDS)


def test_counts_of_an_autoencoder_refuses_what_score_refuses():
    with pytest.raises(ValueError, match="has no objective 'copy'"):
        counts_of(AUTOENCODER, jnp.asarray(ROWS), ["copy"], IDS)
