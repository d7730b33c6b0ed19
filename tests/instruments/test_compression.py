"""What memories cost: the values of the formulas, and texts with their bytes."""

import math

import numpy as np
import pytest

from memjax.instruments.compression import (
    WIDTHS,
    CompressionError,
    bits_per_byte,
    costs,
    embedding_cost,
    memory_nats,
    normalised_loss,
)
from memjax.instruments.information import token_scores


def test_64_numbers_for_1024_tokens() -> None:
    assert memory_nats(64, 4, 1024) == pytest.approx(0.1733, abs=5e-5)
    assert memory_nats(64, 8, 1024) == pytest.approx(0.3466, abs=5e-5)
    assert normalised_loss(2.5, 64, 8, 1024) == pytest.approx(2.8466, abs=5e-5)


def test_published_conversions() -> None:
    assert bits_per_byte(2.60, 100, 392) == pytest.approx(0.957, abs=5e-4)
    assert bits_per_byte(1.4, 100, 282) == pytest.approx(0.72, abs=5e-3)
    assert embedding_cost(512, 4, 512, 2.82) == pytest.approx(1.42, abs=5e-3)
    assert embedding_cost(128, 4, 512, 3.92) == pytest.approx(0.255, abs=5e-4)
    assert embedding_cost(1024, 8, 512, 3.92) == pytest.approx(4.08, abs=5e-3)
    # Both ways of counting are one: bits a byte of the memory are its nats a token.
    assert embedding_cost(64, 4, 1024, 3.92) * math.log(2) * 3.92 == pytest.approx(memory_nats(64, 4, 1024))


def test_costs_of_texts_of_several_lengths() -> None:
    nats, tokens, text_bytes = np.array([2.0, 6.0]), np.array([2, 4]), np.array([8, 10])
    eight = costs(nats, tokens, text_bytes, numbers=3, widths=(8,))[0]
    memory = 2 * 3 * 8
    assert eight.memory_nats == pytest.approx(memory * math.log(2) / 6)
    assert eight.normalised.value == pytest.approx((8 + memory * math.log(2)) / 6)
    assert eight.memory_bits_per_byte.value == pytest.approx(memory / 18)
    assert eight.bits_per_byte.value == pytest.approx((8 / math.log(2) + memory) / 18)


def test_a_trained_memory_pays_only_if_its_numbers_are_few_bits(trained_autoencoder) -> None:
    """32 numbers for eight tokens of five bits: never worth it; but what is left of the text is far below the memory's share."""
    system, params, _, held_out = trained_autoencoder
    scores = token_scores(system, params, held_out, 32)
    rows = costs(scores.sums(scores.nats), scores.counts, 2 * scores.counts, 32)
    assert [row.bits for row in rows] == list(WIDTHS)
    for row in rows:
        assert row.normalised.value == pytest.approx(scores.mean_nats().value + row.memory_nats, rel=1e-9)
        assert row.normalised.low < row.normalised.value < row.normalised.high
        assert row.memory_bits_per_byte.value == 32 * row.bits / 16
        assert row.normalised.value > row.memory_nats > scores.mean_nats().high
    assert rows[1].memory_nats == 2 * rows[0].memory_nats


def test_nothing_to_divide_by_is_refused() -> None:
    with pytest.raises(CompressionError, match="text_bytes=0"):
        bits_per_byte(1.0, 5, 0)
    with pytest.raises(CompressionError, match="tokens=0"):
        embedding_cost(1, 8, 0, 3.9)
    with pytest.raises(CompressionError, match="one number a text"):
        costs(np.ones(2), np.ones(3), np.ones(2), 4)
