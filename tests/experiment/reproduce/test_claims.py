"""Claims judged on numbers written by hand, and the page of what came of it."""

import json
import re

import numpy as np
import pytest

from memjax.experiment.reproduce.claims import (
    CLAIMS,
    FAILS,
    HOLDS,
    OPEN,
    Claim,
    Inequality,
    estimate,
    judge,
)
from memjax.experiment.reproduce.page import NAMES, UNITS, groups, write_page
from memjax.objectives.uncertainty import to_json

ROWS = 200


def number(mean, spread=0.05, tokens=8.0, seed=0):
    """A number of this mean over tokens whose rows differ."""
    drawn = np.random.default_rng(seed).normal(0, spread, ROWS)
    return {"sums": list(tokens * (mean + drawn - drawn.mean())), "counts": [tokens] * ROWS}


def claim(**terms):
    return Claim("c", "words", (Inequality("a test", terms),), tuple(terms), "source")


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ((2.0, 2.1), (1.0, 1.0), HOLDS),
        ((1.0, 1.0), (2.0, 2.1), FAILS),
        ((2.0, 0.9), (1.0, 1.0), OPEN),  # The seeds do not agree.
        ((1.001, 1.001), (1.0, 1.0), OPEN),  # The interval holds zero.
    ],
)
def test_a_claim_holds_where_interval_and_every_seed_say_so(first, second, verdict):
    seeds = [
        {"a": number(a, seed=2 * i), "b": number(b, seed=2 * i + 1)}
        for i, (a, b) in enumerate(zip(first, second, strict=True))
    ]
    found = judge(claim(a=1, b=-1), seeds)
    assert found.verdict == verdict
    (test,) = found.tests
    assert test.by_seed == pytest.approx(np.subtract(first, second))
    assert test.margin.value == pytest.approx(np.mean(np.subtract(first, second)))
    assert [one.value for one in found.numbers["a"]] == pytest.approx(first)


def test_a_claim_is_as_good_as_its_worst_test():
    seeds = [{"a": number(2.0), "b": number(1.0, seed=1)}] * 2
    both = Claim(
        "c", "w", (Inequality("t", {"a": 1, "b": -1}), Inequality("u", {"b": 1, "a": -1})), (), "s"
    )
    found = judge(both, seeds)
    assert [test.verdict for test in found.tests] == [HOLDS, FAILS]
    assert found.verdict == FAILS


def test_a_margin_weighs_rows_by_their_tokens():
    numbers = {
        "a": {"sums": [6.0, 1.0], "counts": [3.0, 1.0]},
        "b": {"sums": [1.0, 1.0], "counts": [1.0, 3.0]},
    }
    (test,) = judge(claim(a=2, b=-1), [numbers, numbers]).tests
    assert test.by_seed == pytest.approx([2 * 7 / 4 - 2 / 4] * 2)


def test_numbers_of_other_rows_are_not_compared():
    numbers = {"a": number(1.0), "b": {"sums": [1.0], "counts": [1.0]}}
    with pytest.raises(ValueError, match=r"got numbers of .* rows, expected equal rows"):
        judge(claim(a=1, b=-1), [numbers, numbers])


def measured(better):
    """Numbers under which every claim holds, or none does."""
    sign = 1 if better else -1
    good = {
        "probe_nats": {
            "constant": 6.0,
            "autoencoder": 1.0,
            "oracle": 4.0,
            "causal": 5.5,
            "retriever": 5.5,
            "untrained": 5.5,
        },
        "probe_accuracy": dict.fromkeys(
            ("autoencoder", "oracle", "causal", "retriever", "untrained"), 0.5
        ),
        "reconstruction_error": {"mixer": 0.1, "transformer": 0.6},
        "reconstruction_nats": {"mixer": 0.3, "transformer": 3.0},
        "next_token_nats": {
            "no_memory": 4.0,
            "next_token": 3.5,
            "full_context": 3.3,
            "recurrent": 3.6,
            "autoencoder_combined": 3.6,
            "causal_combined": 3.6,
            "at_once": 3.6,
        },
        "copy_accuracy": {
            "autoencoder_combined": 0.9,
            "next_token": 0.3,
            "causal_combined": 0.4,
            "at_once": 0.7,
        },
        "blank_copy_accuracy": {
            "autoencoder_combined": 0.9,
            "next_token": 0.1,
            "causal_combined": 0.2,
            "at_once": 0.5,
        },
    }
    flat = {
        f"{kind}/{name}": value for kind, names in good.items() for name, value in names.items()
    }
    if not better:
        flat = {name: 7.0 - value for name, value in flat.items()}
    for kind in ("float32", "float8_e4m3", "float8_e5m2", "int8_vector"):
        flat[f"quantised_nats/plain/{kind}"] = 2.0 if kind == "float32" else 2.0 + sign * 0.9
        flat[f"quantised_nats/noisy/{kind}"] = 2.0
    return {name: number(value, 0.01, seed=i) for i, (name, value) in enumerate(flat.items())}


def test_every_claim_can_hold_and_can_fail():
    for one in CLAIMS:
        assert judge(one, [measured(True)] * 2).verdict == HOLDS, one.name
        assert judge(one, [measured(False)] * 2).verdict == FAILS, one.name


def test_the_page_shows_every_claim_with_its_figures_and_verdict(tmp_path):
    seeds = [measured(True), measured(True)]
    results = {
        "memjax_version": "0",
        "commit": "abc<",
        "created": "now",
        "scale": "small",
        "seeds": [0, 1],
        "corpus": "novels",
        "seconds": 1200.0,
        "device": "1 x cpu",
        "sizes": {"width": 128},
        "command": "memjax reproduce",
        "claims": json.loads(
            json.dumps([to_json(judge(one, seeds)) for one in CLAIMS], allow_nan=False)
        ),
    }
    page = write_page(results, tmp_path / "page.html").read_text()
    assert "7 of 7 claims hold" in page
    assert page.count("<article") == len(CLAIMS)
    assert "abc&lt;" in page and "{{" not in page and "src=" not in page
    assert len(re.findall(r'class="bar"', page)) == sum(len(one.shown) for one in CLAIMS)
    (group,) = groups(
        {"copy_accuracy/next_token": [to_json(estimate(seeds[0], "copy_accuracy/next_token"))] * 2}
    )
    assert (group["unit"], group["rows"][0]["name"]) == ("% correct", "memory, next tokens alone")
    assert group["rows"][0]["mean"] == pytest.approx(30) and group["rows"][0][
        "share"
    ] == pytest.approx(30)


def test_the_page_has_a_word_for_every_number_and_model():
    for name in (name for one in CLAIMS for name in one.shown):
        kind, *models = name.split("/")
        assert kind in UNITS
        assert set(models) <= NAMES.keys()
