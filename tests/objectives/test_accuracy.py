"""Accuracy and recall: exact values, padding, and agreement with teacher forcing."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.inference.regenerate import regenerate
from memjax.models import MemoryModel
from memjax.models.request import join
from memjax.objectives import SpecialIds, score
from memjax.objectives.accuracy import measure, measurement
from memjax.objectives.requests import make_request
from memjax.objectives.uncertainty import ratio
from memjax.testing import tiny_model

IDS = SpecialIds()
VOCABULARY, CHUNKS, LENGTH = 40, 4, 8
MODULE = MemoryModel(tiny_model(), CHUNKS, VOCABULARY)
ROWS = np.random.default_rng(0).integers(6, VOCABULARY, (6, CHUNKS * LENGTH)).astype(np.int32)
EXAMPLE = np.zeros((1, CHUNKS, LENGTH), np.int32)
BYTES = np.where(np.arange(VOCABULARY) < 6, 0, 2)


@pytest.fixture(scope="module")
def params(draw) -> dict:
    return draw(MODULE, EXAMPLE)["params"]


def uniform(params: dict) -> dict:
    return params | {"head": {"kernel": jnp.zeros_like(params["head"]["kernel"])}}


@pytest.mark.slow
def test_uniform_logits_give_ln_v_nats_and_their_bits_per_byte(params: dict) -> None:
    found = measure(MODULE, uniform(params), [ROWS], ("next_token", "copy"), IDS, BYTES)
    for name, tokens in (("next_token", ROWS.size), ("copy", ROWS.size // 2)):
        assert found[name].tokens == tokens
        assert found[name].nats == pytest.approx(math.log(VOCABULARY), rel=1e-5)
        assert found[name].bits_per_byte == pytest.approx(math.log2(VOCABULARY) / 2, rel=1e-5)
        assert found[name].accuracy == 0.0, "the first id wins every tie, and it is padding"


def test_a_measurement_is_compiled_once(params: dict) -> None:
    traces = []

    def spy(call, args, kwargs, context):
        if context.module.name is None and context.method_name == "joined_states":
            traces.append(call)
        return call(*args, **kwargs)

    measured = measurement(MODULE, ("next_token",), IDS, BYTES)
    with nn.intercept_methods(spy):
        found = [measured(params, [ROWS])["next_token"].nats for _ in range(3)]
    assert len(traces) == 1
    assert (
        found
        == [measure(MODULE, params, [ROWS], ("next_token",), IDS, BYTES)["next_token"].nats] * 3
    )


def test_means_are_over_tokens_whatever_the_batches_and_the_padding(params: dict, quick) -> None:
    rows = ROWS.copy()
    rows[0, 5:] = IDS.pad
    filled = np.concatenate([rows, np.full((2, rows.shape[1]), IDS.pad, np.int32)])
    one = measure(MODULE, params, [rows], ("next_token",), IDS, BYTES)["next_token"]
    many = measure(MODULE, params, [filled[:4], filled[4:]], ("next_token",), IDS, BYTES)[
        "next_token"
    ]
    assert one.tokens == many.tokens == (rows != IDS.pad).sum()
    assert one.nats == pytest.approx(many.nats, rel=1e-6)
    np.testing.assert_allclose(one.by_position, many.by_position)
    scores = quick(
        lambda p, x: score(MODULE, {"params": p}, x, ("next_token",), IDS)["next_token"]
    )(params, rows)
    assert one.nats == pytest.approx(
        float((scores.nats * scores.weight).sum() / scores.weight.sum()), rel=1e-5
    )
    np.testing.assert_allclose(one.row_nats, (scores.nats * scores.weight).sum((1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(
        many.row_tokens, (rows != IDS.pad).sum(1), "rows of nothing but padding are no rows"
    )
    interval = ratio(one.row_nats, one.row_tokens)
    assert interval.value == pytest.approx(one.nats)
    assert one.row_nats.min() / 32 < interval.low < interval.value < interval.high
    by_hand = (scores.is_argmax * scores.weight).sum((0, 1)) / scores.weight.sum((0, 1))
    np.testing.assert_allclose(one.by_position, by_hand, rtol=1e-6)


def test_every_batch_is_reported_and_none_is_an_error(params: dict) -> None:
    ticks: list[int] = []
    measure(MODULE, params, [ROWS, ROWS], ("next_token",), IDS, BYTES, lambda: ticks.append(1))
    assert len(ticks) == 2
    with pytest.raises(ValueError, match="no rows"):
        measure(MODULE, params, [], ("next_token",), IDS, BYTES)


@pytest.mark.slow
def test_regenerated_tokens_are_the_argmax_given_themselves(params: dict) -> None:
    """Feeding what was regenerated back as the text to copy, memories kept, every token is the
    teacher-forced first choice."""
    said, held = regenerate(MODULE, params, jnp.asarray(ROWS), IDS)
    np.testing.assert_array_equal(np.asarray(held).reshape(6, -1), ROWS[:, : CHUNKS * LENGTH // 2])
    chunks = jnp.asarray(ROWS).reshape(6, CHUNKS, LENGTH)
    variables = {"params": params}
    memories = MODULE.apply(variables, chunks[:, :2], method="encode")
    inputs = jnp.concatenate([jnp.full((6, 2, 1), IDS.delimiter), said[:, :, :-1]], axis=-1)
    slots = np.array([[0, 1, -1], [0, 1, 0]])
    logits = MODULE.apply(
        variables, inputs, memories, slots, np.array([2, 3]), np.array([1, 1]), method="decode"
    )
    np.testing.assert_array_equal(said, jnp.argmax(logits, axis=-1))


def test_recall_sees_no_token_of_the_text_but_through_memories(draw) -> None:
    control = MemoryModel(tiny_model(), CHUNKS, VOCABULARY, memory=False)
    params = draw(control, EXAMPLE)["params"]
    said, _ = regenerate(control, params, jnp.asarray(ROWS), IDS)
    assert all((np.asarray(said)[0] == row).all() for row in np.asarray(said)), (
        "without memories all rows are told the same"
    )


@pytest.mark.slow
def test_in_the_published_form_a_chunk_goes_on_from_its_given_tokens(params: dict) -> None:
    """Written out token by token: the first is given (three delimiters and two tokens, where there
    are delimiters)."""
    published = ("unscored_first_tokens", "overwritten_delimiter")
    for ask, compat in (("plain_copy", published[:1]), ("copy", published)):
        said, held = (
            np.asarray(x) for x in regenerate(MODULE, params, jnp.asarray(ROWS), IDS, ask, compat)
        )
        chunks = jnp.asarray(ROWS.reshape(-1, CHUNKS, LENGTH))
        request = make_request(ask, chunks, IDS, compat)
        asked, encoded = join([request], chunks)
        variables = {"params": params}
        memories = MODULE.apply(variables, encoded.tokens, method="encode")
        decode = jax.jit(
            lambda inputs, v=variables, m=memories, r=asked: MODULE.apply(
                v, inputs, m, r.slots, r.place, r.task, method="decode"
            )
        )
        inputs, expected = np.full(held.shape, IDS.blank), held.copy()
        inputs[..., 0] = request.inputs[..., 0]
        for t in range(LENGTH - 1):
            token = np.asarray(decode(inputs))[:, :, t].argmax(-1)
            counts = np.asarray(request.weight)[:, :, t] > 0
            expected[..., t + 1] = np.where(counts, token, held[..., t + 1])
            delimiter = np.asarray(request.inputs)[..., t + 1] == IDS.delimiter
            inputs[..., t + 1] = np.where(delimiter, IDS.delimiter, expected[..., t + 1])
        np.testing.assert_array_equal(said, expected)
        assert (said[..., 0] == held[..., 0]).all()
        assert (said != held).any()


def test_an_objective_with_nothing_to_score_is_named(params: dict) -> None:
    with pytest.raises(ValueError, match="'next_token': got no token to score"):
        measure(MODULE, params, [np.zeros_like(ROWS)], ("next_token",), IDS, BYTES)
