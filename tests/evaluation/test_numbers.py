"""How numbers are written, and that none is rounded into a lie."""

from __future__ import annotations

import math

import pytest

from memjax.evaluation import numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.97, "97.0%"),
        (1, "100.0%"),
        (0.9999, "> 99.9%"),
        (0, "0.0%"),
        (0.0001, "< 0.1%"),
        (None, "–"),
        (math.nan, "–"),
        ("1", "–"),
    ],
)
def test_percent_never_rounds_up_to_all_or_down_to_nothing(value, text):
    assert numbers.percent(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.4, "0.4 s"),
        (42, "42 s"),
        (59.7, "1 min 00 s"),
        (560, "9 min 20 s"),
        (11100, "3 h 05 min"),
        (math.inf, "–"),
    ],
)
def test_duration(value, text):
    assert numbers.duration(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (900, "900"),
        (9_999, "9,999"),
        (246_000, "246 k"),
        (999_600, "1 M"),
        (2_048_000, "2.05 M"),
        (True, "–"),
    ],
)
def test_short_count(value, text):
    assert numbers.short_count(value) == text


def test_relative_differences():
    assert numbers.signed_percent(numbers.relative(3.75, 3.6)) == "+4.2%"
    assert numbers.signed_percent(numbers.relative(3.5, 3.6)) == "−2.8%"
    assert numbers.signed_percent(numbers.relative(3.6, 3.6)) == "±0.0%"
    assert numbers.signed_percent(numbers.relative(3.6, 0)) == "–"
