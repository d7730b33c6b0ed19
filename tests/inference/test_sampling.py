"""Which tokens come, and how often, against probabilities worked out in numpy."""

import jax
import numpy as np
import pytest

from memjax.inference import GenerationError, Sampling
from memjax.inference.sampling import draw

LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.3, 0.15], np.float32))
DRAWS = 20_000


def drawn(sampling, logits=LOGITS, key=0):
    """How often each token comes in DRAWS rows of the same logits."""
    rows = np.arange(DRAWS)
    tokens = jax.jit(draw, static_argnums=4)(
        np.tile(logits, (DRAWS, 1)), jax.random.key(key), rows, rows % 3, sampling
    )
    return np.bincount(tokens, minlength=len(logits)) / DRAWS


def softmax(logits):
    weights = np.exp(np.float64(logits) - np.max(logits))
    return weights / weights.sum()


def kept(p, which):
    return np.where(which, p, 0) / p[which].sum()


TEMPERED = softmax(LOGITS / 0.5)
CASES = {
    "as they are": (Sampling(temperature=1.0), softmax(LOGITS)),
    "colder": (Sampling(temperature=0.5), TEMPERED),
    "the three likeliest": (
        Sampling(temperature=1.0, top_k=3),
        kept(softmax(LOGITS), np.array([0, 1, 0, 1, 1], bool)),
    ),
    "more than there are": (Sampling(temperature=1.0, top_k=99), softmax(LOGITS)),
    # 0.4 alone and 0.4 + 0.3 are not 0.75 yet, 0.4 + 0.3 + 0.15 is.
    "three quarters": (
        Sampling(temperature=1.0, top_p=0.75),
        kept(softmax(LOGITS), np.array([0, 1, 0, 1, 1], bool)),
    ),
    # Temperature comes first: the likeliest are then 0.56 and 0.32.
    "three quarters, colder": (
        Sampling(temperature=0.5, top_p=0.75),
        kept(TEMPERED, np.array([0, 1, 0, 1, 0], bool)),
    ),
    # Top k comes before top p: 0.4 of the 0.7 that are left is 0.57.
    "both": (Sampling(temperature=1.0, top_k=2, top_p=0.55), np.eye(5)[1]),
}


@pytest.mark.parametrize("case", CASES)
def test_tokens_come_as_often_as_they_should(case):
    sampling, expected = CASES[case]
    found = drawn(sampling)
    # Five standard deviations of a share of DRAWS.
    np.testing.assert_array_less(
        np.abs(found - expected), 5 * np.sqrt(expected * (1 - expected) / DRAWS) + 1e-6
    )


def test_greedy_and_one_candidate_are_the_first_of_the_likeliest():
    logits = np.array([[0.0, 2.0, 1.0, 2.0]] * 50, np.float32)
    rows = np.arange(50)
    for sampling in (
        Sampling(),
        Sampling(temperature=2.0, top_k=1),
        Sampling(temperature=2.0, top_p=1e-9),
    ):
        tokens = draw(logits, jax.random.key(0), rows, rows, sampling)
        assert tokens.dtype == np.int32
        assert np.all(np.asarray(tokens) == 1)


def test_chance_is_of_the_key_the_row_and_the_token_alone():
    logits = np.tile(LOGITS, (64, 1))
    sampling, row, made = Sampling(temperature=1.0), np.arange(64), np.full(64, 7)
    whole = np.asarray(draw(logits, jax.random.key(1), row, made, sampling))
    part = np.asarray(draw(logits[:5], jax.random.key(1), row[40:45], made[:5], sampling))
    assert np.array_equal(part, whole[40:45])
    for other in (
        (jax.random.key(2), row, made),
        (jax.random.key(1), row + 64, made),
        (jax.random.key(1), row, made + 1),
    ):
        assert not np.array_equal(draw(logits, *other, sampling), whole)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"temperature": -0.1}, "temperature=-0.1 must be a number from 0"),
        ({"temperature": float("nan")}, "temperature=nan must be"),
        ({"top_k": -1}, "top_k=-1 must be 0"),
        ({"top_p": 0.0}, "top_p=0.0 must be more than 0 and at most 1"),
        ({"top_p": 1.1}, "top_p=1.1 must be"),
    ],
)
def test_impossible_settings(kwargs, message):
    with pytest.raises(GenerationError, match=message):
        Sampling(**kwargs)
