"""What memories cost: the values of the formulas, and texts with their bytes."""

import math

import numpy as np
import pytest

from memjax.evaluation.instruments.compression import (
    WIDTHS,
    CompressionError,
    costs,
)
from memjax.evaluation.instruments.information import token_scores
from memjax.objectives.uncertainty import ratio


def test_64_numbers_for_1024_tokens() -> None:
    four, eight = costs(np.zeros(1), np.array([1024]), np.array([4096]), 64, widths=(4, 8))
    assert four.memory_nats == pytest.approx(0.1733, abs=5e-5)
    assert eight.memory_nats == pytest.approx(0.3466, abs=5e-5)


def test_published_conversions() -> None:
    for nats, text_bytes, bits, error in ((2.60, 392, 0.957, 5e-4), (1.4, 282, 0.72, 5e-3)):
        (found,) = costs(
            np.array([100 * nats]), np.array([100]), np.array([text_bytes]), 0, widths=(8,)
        )
        assert found.bits_per_byte.value == pytest.approx(bits, abs=error)


def test_costs_of_texts_of_several_lengths() -> None:
    nats, tokens, text_bytes = np.array([2.0, 6.0]), np.array([2, 4]), np.array([8, 10])
    eight = costs(nats, tokens, text_bytes, numbers=3, widths=(8,))[0]
    memory = 2 * 3 * 8
    assert eight.memory_nats == pytest.approx(memory * math.log(2) / 6)
    assert eight.normalised.value == pytest.approx((8 + memory * math.log(2)) / 6)
    assert eight.memory_bits_per_byte.value == pytest.approx(memory / 18)
    assert eight.bits_per_byte.value == pytest.approx((8 / math.log(2) + memory) / 18)


def test_a_trained_memory_pays_only_if_its_numbers_are_few_bits(trained_autoencoder) -> None:
    """32 numbers for eight tokens of five bits: never worth it; but what is left of the text is far
    below the memory's share."""
    system, params, _, held_out = trained_autoencoder
    scores = token_scores(system, params, held_out, 32)
    own, _, tokens = scores.of_texts()
    rows = costs(own, tokens, 2 * tokens, 32)
    nats = ratio(own, tokens)
    assert [row.bits for row in rows] == list(WIDTHS)
    for row in rows:
        assert row.normalised.value == pytest.approx(nats.value + row.memory_nats, rel=1e-9)
        assert row.normalised.low < row.normalised.value < row.normalised.high
        assert row.memory_bits_per_byte.value == 32 * row.bits / 16
        assert row.normalised.value > row.memory_nats > nats.high
    assert rows[1].memory_nats == 2 * rows[0].memory_nats


def test_nothing_to_divide_by_is_refused() -> None:
    with pytest.raises(CompressionError, match="text_bytes=0"):
        costs(np.ones(1), np.ones(1), np.zeros(1), 4)
    with pytest.raises(CompressionError, match="tokens=0"):
        costs(np.ones(1), np.zeros(1), np.ones(1), 4)
    with pytest.raises(CompressionError, match="expected one number per text"):
        costs(np.ones(2), np.ones(3), np.ones(2), 4)
