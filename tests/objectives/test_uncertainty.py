"""Means over texts and their intervals."""

import json
import math

import numpy as np
import pytest

from memjax.objectives.uncertainty import Estimate, mean, ratio, to_json


def test_a_ratio_weighs_texts_by_their_tokens():
    found = ratio(np.array([10.0, 2.0, 0.0]), np.array([5.0, 4.0, 0.0]))
    assert (found.value, found.texts) == (12 / 9, 2), "a text without tokens is none"
    assert 0.5 <= found.low < found.value < found.high <= 2.0, "between the two texts' own means"


def test_the_interval_is_that_of_the_normal_law_where_texts_are_many():
    values = np.random.default_rng(1).normal(3.0, 2.0, 4000)
    found = mean(values)
    half = 1.96 * values.std() / math.sqrt(values.size)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_nineteen_of_twenty_intervals_hold_the_truth():
    generator = np.random.default_rng(2)
    held = 0
    for trial in range(200):
        tokens = generator.integers(5, 50, 60)
        found = ratio(generator.gamma(tokens, 0.1), tokens, seed=trial)
        held += found.low <= 0.1 <= found.high
    assert 178 <= held <= 199


def test_the_same_numbers_give_the_same_interval():
    values = np.random.default_rng(0).random(50)
    assert mean(values) == mean(values)


def test_one_text_has_no_interval_and_equal_texts_an_empty_one():
    assert mean([2.0]) == Estimate(2.0, None, None, 1)
    assert ratio(np.array([2.0, 4.0]), np.array([1.0, 2.0])) == Estimate(2.0, 2.0, 2.0, 2)


@pytest.mark.parametrize(
    ("numerators", "denominators", "message"),
    [
        ([], [], "got no token that counts"),
        ([1.0], [0.0], "got no token that counts"),
        ([math.nan, 1.0], [1.0, 1.0], "not finite"),
        ([1.0, 2.0], [1.0], "one number per"),
    ],
)
def test_what_has_no_mean_is_refused(numerators, denominators, message):
    with pytest.raises(ValueError, match=message):
        ratio(np.array(numerators), np.array(denominators))


def test_json_has_no_number_that_is_not_finite():
    said = to_json(
        {
            "a": Estimate(math.nan, None, 1.0, 3),
            "b": [np.float32(0.5), np.arange(2)],
            "c": (math.inf,),
        }
    )
    assert json.loads(json.dumps(said, allow_nan=False)) == {
        "a": {"value": None, "low": None, "high": 1.0, "texts": 3},
        "b": [0.5, [0, 1]],
        "c": [None],
    }
