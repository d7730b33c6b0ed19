"""Recall from memory alone: curves worked out by hand, agreement with teacher forcing, and trained
models."""

import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Stage
from memjax.evaluation.instruments.information import NOTHING
from memjax.evaluation.instruments.recall_curves import curves, recall_curves
from memjax.inference.codec import make_codec, scores_of
from memjax.inference.regenerate import regenerate
from memjax.inference.texts import TextsError
from memjax.models import Autoencoder, MemoryModel, Oracle
from memjax.models.request import join
from memjax.objectives import SpecialIds, score
from memjax.objectives.requests import make_request
from memjax.testing import tiny_model

IDS, VOCABULARY, LENGTH = SpecialIds(), 40, 8
TEXTS = np.random.default_rng(0).integers(6, VOCABULARY, (6, LENGTH)).astype(np.int32)


def values(estimates):
    return [estimate.value for estimate in estimates]


def test_curves_by_hand() -> None:
    correct = np.array([[1, 1, 0, 1], [0, 1, 1, 1], [1, 1, 1, 1]])
    deciles = np.array([[0, 0, 1, 9], [0, 1, 1, 9], [9, 9, 9, 9]])
    found = curves(correct, np.ones((3, 4)), deciles)
    assert found.accuracy.value == pytest.approx(10 / 12)
    assert found.exact.value == pytest.approx(1 / 3)
    assert found.before_error.value == pytest.approx((2 + 0 + 4) / 3)
    assert values(found.survival) == pytest.approx([2 / 3, 2 / 3, 1 / 3, 1 / 3])
    assert values(found.by_position) == pytest.approx([2 / 3, 1, 2 / 3, 1])
    assert values(found.by_frequency[:2]) == pytest.approx([2 / 3, 2 / 3])
    assert found.by_frequency[2] == NOTHING and found.by_frequency[9].value == 1.0


def test_curves_of_several_chunks_and_padding() -> None:
    """Text 0 has two chunks, of which the second ends early; of text 1 the second is all
    padding."""
    weight = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]])
    correct = np.array([[1, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1]])
    found = curves(correct, weight, np.zeros((2, 6), int), held=2)
    assert found.accuracy.value == pytest.approx(6 / 7)
    assert found.exact.value == pytest.approx(2 / 3)
    assert found.before_error.value == pytest.approx((1 + 1 + 3) / 3)
    assert values(found.survival) == pytest.approx([1, 2 / 3, 2 / 3])
    assert values(found.by_position) == pytest.approx([1, 1 / 2, 1])


def test_an_autoencoder_says_its_first_choices_at_once(draw, quick) -> None:
    module = Autoencoder(tiny_model(), VOCABULARY)
    params = draw(module, jnp.zeros((1, LENGTH), jnp.int32))["params"]
    system = make_codec(module, IDS)
    found = recall_curves(system, params, TEXTS, TEXTS, batch=4)
    assert found["free"] == found["forced"]
    memory = quick(system.encode)(params, TEXTS)
    said = quick(system.reconstruct)(params, memory, TEXTS)
    logits = quick(system.logits)(params, memory, TEXTS)
    np.testing.assert_array_equal(said, logits.argmax(axis=-1))
    assert found["free"].accuracy.value == pytest.approx((said == TEXTS).mean())


@pytest.mark.parametrize("compat", [(), ("unscored_first_tokens",)], ids=str)
def test_what_an_oracle_says_is_its_first_choice_given_what_it_said(compat, draw, quick) -> None:
    """Shown its own words as the text, memory kept, every choice stands; and no token of the text
    was read, padding apart."""
    module = Oracle(tiny_model(), VOCABULARY)
    params = draw(module, jnp.zeros((1, LENGTH), jnp.int32))["params"]
    system = make_codec(module, IDS, compat=compat)
    texts = TEXTS.copy()
    texts[0, :3] = IDS.pad  # Before the text,
    texts[1, 5:] = IDS.pad  # and after it.
    memory = quick(system.encode)(params, texts)
    speak = quick(system.reconstruct)
    said = speak(params, memory, texts)
    real = texts != IDS.pad
    np.testing.assert_array_equal(said[~real], texts[~real])
    choices = quick(system.logits)(params, memory, said).argmax(axis=-1)
    if compat:
        chosen = real.copy()
        chosen[:, 0] = False
        np.testing.assert_array_equal(said[:, 0], texts[:, 0])
        np.testing.assert_array_equal(
            said[chosen], np.pad(choices[:, :-1], ((0, 0), (1, 0)))[chosen]
        )
    else:
        np.testing.assert_array_equal(said[real], choices[real])
    other = np.where(real, 6 + (texts + 1) % 30, texts)
    other[:, :1] = texts[:, :1]
    np.testing.assert_array_equal(speak(params, memory, other), said)


@pytest.mark.parametrize("ask", ["copy", "blank_copy"])
def test_a_memory_model_is_asked_as_it_was_trained(ask, draw) -> None:
    module = MemoryModel(tiny_model(), 4, VOCABULARY)
    params = draw(module, jnp.zeros((1, 4, LENGTH), jnp.int32))["params"]
    system = make_codec(module, IDS, ask)
    texts = TEXTS.reshape(3, 2 * LENGTH)
    found = recall_curves(system, params, texts, texts, batch=2)
    assert len(found["free"].by_position) == LENGTH
    if ask == "blank_copy":
        assert found["free"] == found["forced"]
    else:
        rows = np.concatenate([texts, texts], axis=1)
        said, held = (np.asarray(x) for x in regenerate(module, params, rows, IDS, ask))
        assert found["free"].accuracy.value == pytest.approx((said == held).mean())
        assert found["free"].exact.value == pytest.approx((said == held).all(axis=-1).mean())


@pytest.mark.quick_cases("copy-()")
@pytest.mark.parametrize("compat", [(), ("unscored_first_tokens",)], ids=str)
@pytest.mark.parametrize("ask", ["copy", "plain_copy"])
def test_greedy_is_forced_where_every_forced_token_is_right(ask, compat, draw, quick) -> None:
    """Given what it said as the text, memories kept, a model is right everywhere: with padding on
    either side, and a chunk of padding alone."""
    module = MemoryModel(tiny_model(), 4, VOCABULARY)
    params = draw(module, jnp.zeros((1, 4, LENGTH), jnp.int32))["params"]
    rows = np.random.default_rng(1).integers(6, VOCABULARY, (4, 4 * LENGTH)).astype(np.int32)
    rows[0, 11:] = IDS.pad
    rows[1, :5] = IDS.pad
    rows[2, :11] = IDS.pad
    said, held = quick(lambda p, x: regenerate(module, p, x, IDS, ask, compat))(params, rows)
    real = held != IDS.pad
    np.testing.assert_array_equal(said[~real], held[~real])
    assert (said != held)[1:3].any(axis=(1, 2)).all(), "with the padding right the text is not"

    def forced(params, chunks, said):
        request = make_request(ask, chunks, IDS, compat)
        asked, encoded = join([request], chunks)
        valid = encoded.tokens != IDS.pad
        memories = module.apply({"params": params}, encoded.tokens, valid, method="encode")
        own = make_request(ask, jnp.concatenate([said, chunks[:, 2:]], axis=1), IDS, compat)
        rest = asked.slots, asked.place, asked.task, valid.any(-1), request.inputs != IDS.pad
        logits = module.apply({"params": params}, own.inputs, memories, *rest, method="decode")
        return logits.argmax(-1), own.labels, request.weight

    chosen, labels, weight = quick(forced)(params, rows.reshape(4, 4, LENGTH), said)
    np.testing.assert_array_equal(chosen[weight > 0], labels[weight > 0])


def test_padding_before_a_text_is_masked_by_instruments_too(draw, quick) -> None:
    """An instrument and the objective give a text one loss, whichever side its padding is on."""
    module = MemoryModel(tiny_model(), 4, VOCABULARY)
    params = draw(module, jnp.zeros((1, 4, LENGTH), jnp.int32))["params"]
    texts = TEXTS.reshape(3, 2 * LENGTH).copy()
    texts[0, :3] = IDS.pad
    codec = make_codec(module, IDS, "copy")
    row = np.concatenate([texts, texts], axis=1)
    scores = quick(lambda p, x: scores_of(codec, p, x))(params, texts)
    expected = quick(lambda p, x: score(module, {"params": p}, x, ("copy",), IDS)["copy"])(
        params, row
    )
    for name in ("nats", "is_argmax"):
        ours, theirs = (
            np.where(x.weight > 0, getattr(x, name), 0).sum((1, 2)) for x in (scores, expected)
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_a_trained_autoencoder_recalls_unseen_text(trained_autoencoder, quick) -> None:
    system, params, train, held_out = trained_autoencoder
    found = recall_curves(system, params, held_out, train, 48)["free"]
    assert found.accuracy.low > 0.7 and found.exact.low > 0.2
    survival = values(found.survival)
    assert survival == sorted(survival, reverse=True)
    assert survival[-1] == pytest.approx(found.exact.value) and survival[0] == pytest.approx(
        found.by_position[0].value
    )
    # Tokens before the first error are the positions survived.
    assert found.before_error.value == pytest.approx(sum(survival))
    memory = np.roll(quick(system.encode)(params, held_out), 1, axis=0)
    others = quick(system.reconstruct)(params, memory, held_out)
    assert (others == held_out).mean() < 0.5 * found.accuracy.low


@pytest.mark.slow
def test_a_trained_oracle_errs_more_when_it_reads_its_own_words(chain, learn) -> None:
    module = Oracle(tiny_model(), VOCABULARY)
    stage = Stage(
        family="oracle",
        objectives={"next_token": 1.0},
        batch_size=64,
        steps=120,
        warmup_steps=10,
        learning_rate=1e-2,
    )
    texts = chain(608, seed=1)
    params = learn(module, stage, texts[:512])
    found = recall_curves(make_codec(module, IDS), params, texts[512:], texts[:512], 96)
    assert found["forced"].accuracy.low > 0.5
    assert found["free"].accuracy.high < found["forced"].accuracy.low
    assert found["free"].by_position[0] == found["forced"].by_position[0], (
        "before the first word there is nothing to go wrong"
    )
    # A chunk is exact in both ways or in neither: until its first error both are shown the same.
    assert (
        found["free"].exact == found["forced"].exact
        and found["free"].survival == found["forced"].survival
    )


def test_texts_that_do_not_fit_are_refused(trained_autoencoder) -> None:
    system, params, train, held_out = trained_autoencoder
    with pytest.raises(TextsError, match="8 tokens"):
        recall_curves(system, params, held_out[:, :4], train)
    with pytest.raises(TextsError, match="8 tokens"):
        recall_curves(system, params, held_out, train[:, :4])
