"""Information: the zeros it is measured from, exact values, and a trained model's own memories
beside constant ones."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.evaluation.instruments.information import (
    NOTHING,
    curve,
    entropy_ratio,
    frequency_deciles,
    held,
    information,
    token_scores,
    unigram_nats,
    zero_nats,
)
from memjax.inference.codec import make_codec
from memjax.inference.texts import TextsError
from memjax.models import Autoencoder, MemoryModel, Oracle
from memjax.objectives import SpecialIds
from memjax.objectives.uncertainty import ratio
from memjax.testing import tiny_model
from memjax.testing.progress import Recorder

IDS, VOCABULARY, LENGTH = SpecialIds(), 12, 8
MODULE = Autoencoder(tiny_model(), VOCABULARY)
SYSTEM = make_codec(MODULE, IDS)
GENERATOR = np.random.default_rng(0)
TRAIN = np.minimum(GENERATOR.geometric(0.4, (30, LENGTH)) + 5, VOCABULARY - 1).astype(np.int32)
TEXTS = np.minimum(GENERATOR.geometric(0.4, (7, LENGTH)) + 5, VOCABULARY - 1).astype(np.int32)


@pytest.fixture(scope="module")
def params(draw):
    return draw(MODULE, jnp.zeros((1, LENGTH), jnp.int32))["params"]


def saying(params, logits):
    """Parameters whose decoder gives `logits` at every position, whatever the memory: states are
    all ones."""
    still = jax.tree.map(jnp.zeros_like, params["backbone"]["blocks"])
    projection = params["unroll_projection"]
    width = projection["bias"].shape[0]
    return params | {
        "backbone": {
            "blocks": still,
            "norm": {"scale": jnp.ones_like(params["backbone"]["norm"]["scale"])},
        },
        "unroll_projection": {
            "kernel": jnp.zeros_like(projection["kernel"]),
            "bias": jnp.ones(width),
        },
        "head": {"kernel": jnp.tile(jnp.asarray(logits, jnp.float32) / width, (width, 1))},
    }


def test_the_zero_is_what_random_logits_score() -> None:
    assert zero_nats(8000) == pytest.approx(9.0285, abs=5e-5)
    assert zero_nats(128256) == pytest.approx(11.803, abs=5e-4)
    drawn = np.random.default_rng(0).random((400, 8000))
    scored = np.log(np.exp(drawn).sum(axis=1)) - drawn[:, 0]
    assert scored.mean() == pytest.approx(zero_nats(8000), abs=0.05)
    # A row of the published table: 0.435 nats are 0.952 of the information.
    assert entropy_ratio(0.435, 8000) == pytest.approx(0.952, abs=5e-4)
    assert entropy_ratio(zero_nats(50), 50) == 0.0


def test_uniform_logits_give_ln_v_whatever_the_memory(params) -> None:
    found = information(SYSTEM, saying(params, np.zeros(VOCABULARY)), TEXTS, TRAIN, batch=3)
    assert found.nats.value == pytest.approx(math.log(VOCABULARY), rel=1e-6)
    assert found.information.value == pytest.approx(
        1 - math.log(VOCABULARY) / zero_nats(VOCABULARY), rel=1e-5
    )
    for zero in ("mean_memory", "zero_memory"):
        assert found.zeros[zero].nats.value == pytest.approx(math.log(VOCABULARY), rel=1e-6)
        assert found.zeros[zero].information.value == pytest.approx(0, abs=1e-6)
    assert found.accuracy.value == 0.0, "the first id wins every tie, and it is padding"


def test_a_decoder_that_says_the_unigram_gains_nothing(params) -> None:
    counts = np.bincount(TRAIN.ravel(), minlength=VOCABULARY) + 1.0
    counts[IDS.pad] = 0
    share = counts / counts.sum()
    by_hand = -np.log(share[TEXTS]).mean()
    with np.errstate(divide="ignore"):
        logits = np.maximum(np.log(share), -60.0)
    found = information(SYSTEM, saying(params, logits), TEXTS, TRAIN, batch=4)
    assert found.accuracy.value == pytest.approx((counts.argmax() == TEXTS).mean())
    assert found.nats.value == pytest.approx(by_hand, rel=1e-5)
    assert found.zeros["unigram"].nats.value == pytest.approx(by_hand, rel=1e-9)
    for zero in ("unigram", "mean_memory", "zero_memory"):
        assert found.zeros[zero].information.value == pytest.approx(0, abs=1e-6)
    first = (TEXTS[:, 0] == counts.argmax()).mean()
    assert found.by_position[0].value == pytest.approx(first)
    # The most frequent id is right always, all others never.
    decile = frequency_deciles(TRAIN, TRAIN > 0, VOCABULARY)
    for at, share_right in enumerate(found.by_frequency):
        inside = decile[TEXTS] == at
        expected = (counts.argmax() == TEXTS)[inside].mean() if inside.any() else None
        assert (
            share_right == NOTHING
            if expected is None
            else share_right.value == pytest.approx(expected)
        )


def test_unigrams_are_those_counted_by_hand() -> None:
    train = np.array([[3, 1], [3, 2], [0, 2]])
    labels = np.array([[3, 2], [1, 3]])
    whole, position = unigram_nats(train, (train != 0).astype(float), labels, 4, pad=0)
    # Ids 1, 2, 3 are seen 1, 2, 2 times among five, and once more each.
    share = {1: 2 / 8, 2: 3 / 8, 3: 3 / 8}
    np.testing.assert_allclose(np.exp(-whole), [[share[3], share[2]], [share[1], share[3]]])
    at_first = {1: (0 + 3 * share[1]) / 5, 3: (2 + 3 * share[3]) / 5}
    at_second = {2: (2 + 3 * share[2]) / 6, 3: (0 + 3 * share[3]) / 6}
    np.testing.assert_allclose(
        np.exp(-position), [[at_first[3], at_second[2]], [at_first[1], at_second[3]]]
    )


def test_deciles_hold_tenths_of_the_training_text() -> None:
    labels = np.repeat(np.arange(20), 5)[None]
    deciles = frequency_deciles(labels, np.ones_like(labels), 21)
    np.testing.assert_array_equal(deciles, [*np.arange(20) // 2, 9])
    # One id is six of ten tokens: its middle is at 0.3; the others follow at 0.65, 0.75 and 0.9.
    labels = np.array([[7] * 6 + [5, 5] + [6] + [4]])
    deciles = frequency_deciles(labels, np.ones_like(labels), 8)
    assert deciles[[7, 5, 4, 6, 0]].tolist() == [3, 7, 8, 9, 9]


def test_a_curve_is_the_ratio_of_every_column() -> None:
    above, below = GENERATOR.random((40, 3)), GENERATOR.integers(1, 9, (40, 3)).astype(float)
    below[:, 2], above[:, 2] = 0, 0
    found = curve(above, below)
    assert found[2] == NOTHING
    for column in range(2):
        expected = ratio(above[:, column], below[:, column])
        assert found[column].value == pytest.approx(expected.value)
        spread = expected.high - expected.low
        assert found[column].low == pytest.approx(expected.low, abs=0.2 * spread)
        assert found[column].high == pytest.approx(expected.high, abs=0.2 * spread)
    one = curve(np.array([[1.0]]), np.array([[4.0]]))[0]
    assert (one.value, one.low, one.texts) == (0.25, None, 1)


def test_constant_memories_are_the_mean_over_training_texts_and_zeros(params, quick) -> None:
    """Whatever the batches: what fills up the last one counts neither in the mean nor in the
    scores."""
    found = information(SYSTEM, params, TEXTS, TRAIN, batch=4)
    encode, score = quick(SYSTEM.encode), quick(SYSTEM.score)
    memory = encode(params, TRAIN).mean(axis=0)
    for name, constant in (("mean_memory", memory), ("zero_memory", np.zeros_like(memory))):
        scores = score(params, np.stack([constant] * len(TEXTS)), TEXTS)
        assert found.zeros[name].nats.value == pytest.approx(float(scores.nats.mean()), rel=1e-5)
    own = score(params, encode(params, TEXTS), TEXTS)
    assert found.nats.value == pytest.approx(float(own.nats.mean()), rel=1e-5)
    assert found.nats.texts == len(TEXTS)


def test_padding_counts_nowhere(params) -> None:
    texts = TEXTS.copy()
    texts[0, 3:], texts[1, :] = IDS.pad, IDS.pad
    scores = token_scores(SYSTEM, params, texts, batch=3)
    real = texts != IDS.pad
    own = held(scores.of_texts(), VOCABULARY)
    assert own.nats.value == pytest.approx(scores.nats[real].mean(), rel=1e-6)
    assert own.accuracy.value == pytest.approx(scores.correct[real].mean(), rel=1e-6)
    found = information(SYSTEM, params, texts, TRAIN, batch=3)
    assert found.nats.texts == len(texts) - 1
    assert found.by_position[5].texts == len(texts) - 2


@pytest.mark.quick_cases("copy")
@pytest.mark.parametrize("ask", ["copy", ""])
def test_other_families_are_measured_alike(ask, draw) -> None:
    module = MemoryModel(tiny_model(), 4, VOCABULARY) if ask else Oracle(tiny_model(), VOCABULARY)
    shape = (1, 4, LENGTH) if ask else (1, LENGTH)
    params = draw(module, jnp.zeros(shape, jnp.int32))["params"]
    system = make_codec(module, IDS, ask)
    texts = np.concatenate([TRAIN] * (system.length // LENGTH), axis=1)
    found = information(system, params, texts[:5], texts, batch=4)
    assert len(found.by_position) == system.length
    assert found.bits_a_dimension.value * np.prod(system.shape) * math.log(2) == pytest.approx(
        found.gained.value * system.length, rel=1e-6
    )


@pytest.mark.slow
def test_a_trained_memory_takes_away_most_of_every_zero(trained_autoencoder) -> None:
    system, params, train, held_out = trained_autoencoder
    recorder = Recorder()
    with recorder.active():
        found = information(system, params, held_out, train, 64)
    assert recorder.bars == {"training texts": [1] * 8, "information": [1] * 2}
    assert recorder.totals == {"training texts": 8, "information": 2}
    assert found.accuracy.low > 0.7
    assert min(zero.information.low for zero in found.zeros.values()) > 0.6
    assert found.zeros[found.best].nats.value == min(
        zero.nats.value for zero in found.zeros.values()
    )
    assert found.gained.value == pytest.approx(
        found.zeros[found.best].nats.value - found.nats.value, rel=1e-6
    )
    # Eight tokens in 32 numbers: what is gained, in bits, shared out among them.
    assert found.bits_a_dimension.value == pytest.approx(
        found.gained.value * 8 / (32 * math.log(2)), rel=1e-6
    )
    assert found.information.low < found.information.value < found.information.high
    again = held(token_scores(system, params, held_out, 64).of_texts(), 40)
    assert found.information.value == pytest.approx(entropy_ratio(again.nats.value, 40), rel=1e-6)


def test_texts_of_another_length_are_refused(params) -> None:
    with pytest.raises(TextsError, match=r"expected texts of 8 tokens"):
        information(SYSTEM, params, TEXTS[:, :7], TRAIN, 4)
    with pytest.raises(TextsError, match="texts: none, expected at least one"):
        information(SYSTEM, params, TEXTS, TRAIN[:0], 4)
