"""Entropy by shifting is the difference of two directly scored windows, and finds what a chain of
known entropy says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone, Optimizer, Stage
from memjax.evaluation.instruments.attribution import attribute
from memjax.evaluation.instruments.token_entropy import EntropyError, token_entropy
from memjax.inference.codec import make_codec, scores_of
from memjax.inference.texts import TextsError
from memjax.models import Autoencoder, Oracle
from memjax.objectives import SpecialIds
from memjax.testing import tiny_model
from memjax.training.optimizer import make_optimizer
from memjax.training.step import TrainState, train_step

IDS = SpecialIds()
LENGTH, VOCABULARY = 8, 40


def make(draw, compat=()):
    module = Oracle(tiny_model(), VOCABULARY)
    return make_codec(module, IDS, compat=compat), draw(module, np.ones((1, LENGTH), np.int32))[
        "params"
    ]


def texts_of(count=5):
    texts = (
        np.random.default_rng(0)
        .integers(IDS.first_content, VOCABULARY, (count, LENGTH))
        .astype(np.int32)
    )
    texts[0, :3] = IDS.pad
    return texts


@pytest.mark.parametrize("compat", [(), ("unscored_first_tokens",)])
def test_each_entropy_is_the_difference_of_two_windows(draw, quick, compat):
    """All 2 T windows of a text are built and scored one by one."""
    system, params = make(draw, compat)
    texts = texts_of()

    def score(window):
        scores = scores_of(system, params, window)
        return scores.nats[:, 0], scores.weight[:, 0]

    score, found = quick(score), token_entropy(system, params, texts, batch=2)
    for text, values in zip(texts, found, strict=True):
        for t in range(LENGTH):
            sums = []
            for end in (t + 1, t):
                window = np.full(LENGTH, IDS.pad, np.int32)
                window[LENGTH - end :] = text[:end]
                # As published, the token at a window's very start is not asked for.
                first = LENGTH - end if compat else 0
                nats, weight = score(window[None])
                sums.append((nats[0].astype(np.float64) * weight[0])[first:].sum())
            expected = 0 if text[t] == IDS.pad else sums[0] - sums[1]
            assert values[t] == pytest.approx(expected, abs=2e-5), t
    assert found.dtype == np.float64
    assert not found[0, :3].any()
    if compat:
        assert not found[1:, 0].any(), "the first token of a full text is not said"


def test_entropies_add_up_to_what_the_text_costs(draw, quick):
    system, params = make(draw)
    texts = texts_of()
    scores = quick(lambda texts: scores_of(system, params, texts))(texts)
    whole = (scores.nats * scores.weight).sum(axis=(1, 2))
    np.testing.assert_allclose(
        token_entropy(system, params, texts, batch=2).sum(axis=1), whole, rtol=1e-5
    )
    np.testing.assert_allclose(
        attribute(system, params, texts, "entropy", batch=2).sum(axis=1), whole, rtol=1e-5
    )


def chain(count, seed):
    """(texts, where a token took the rare way): a token is followed by one of two others, by the
    second with probability 0.15."""
    content = VOCABULARY - IDS.first_content
    follow = np.random.default_rng(99).permuted(np.tile(np.arange(content), (2, 1)), axis=1)
    generator = np.random.default_rng(seed)
    state = generator.integers(0, content, count)
    texts, rare = [state], [np.zeros(count, bool)]
    for _ in range(LENGTH - 1):
        way = (generator.random(count) < 0.15).astype(int)
        state = follow[way, state]
        texts.append(state)
        rare.append(way == 1)
    return (np.stack(texts, axis=1) + IDS.first_content).astype(np.int32), np.stack(rare, axis=1)


@pytest.fixture(scope="module")
def trained():
    """An oracle with a narrow memory, trained on texts of all lengths with their padding on the
    left."""
    small = Backbone(kind="transformer", width=32, layers=1, heads=2, mlp_ratio=2.0)
    module = Oracle(
        dataclasses.replace(tiny_model(), bottleneck=1, encoder=small, decoder=small), VOCABULARY
    )
    texts, _ = chain(1024, seed=1)
    stage = Stage(
        family="oracle",
        objectives={"next_token": 1.0},
        batch_size=64,
        steps=200,
        warmup_steps=10,
        learning_rate=1e-2,
    )
    params = jax.jit(module.init)(jax.random.key(0), jnp.asarray(texts[:1]))["params"]
    optimizer = make_optimizer(Optimizer(), stage, params)

    @jax.jit
    def run(state, texts):
        def step(state, key):
            at, cuts = jax.random.split(key)
            rows = texts[jax.random.randint(at, (stage.batch_size,), 0, len(texts))]
            cut = jax.random.randint(cuts, (stage.batch_size, 1), 0, LENGTH)
            rows = jnp.where(
                jnp.arange(LENGTH) >= cut, jax.vmap(jnp.roll)(rows, cut[:, 0]), IDS.pad
            )
            state, metrics = train_step(
                state, rows, module=module, stage=stage, optimizer=optimizer, ids=IDS
            )
            return state, metrics.loss

        return jax.lax.scan(step, state, jax.random.split(jax.random.key(1), stage.steps))

    state, losses = run(TrainState(jnp.int32(0), params, {}, optimizer.init(params)), texts)
    assert losses[-1] < 0.5 * losses[0]
    return make_codec(module, IDS), jax.device_get(dict(state.trainable))


@pytest.mark.slow
def test_a_trained_oracle_tells_the_rare_from_the_common(trained):
    """In truth a first token has ln 34 = 3.5 nats, a rare one 1.9 and a common one 0.16; a memory
    that holds a little says a little less."""
    system, params = trained
    texts, rare = chain(256, seed=2)
    found = token_entropy(system, params, texts, batch=64)
    first, common, uncommon = (
        found[:, 0].mean(),
        found[:, 1:][~rare[:, 1:]].mean(),
        found[:, 1:][rare[:, 1:]].mean(),
    )
    assert first > 2.0
    assert common < 0.7
    assert common + 0.5 < uncommon < first + 1.0


def test_what_cannot_be_asked_is_named(draw):
    system, params = make(draw)
    with pytest.raises(TextsError, match="texts of 8 tokens"):
        token_entropy(system, params, texts_of()[:, :4], batch=2)
    with pytest.raises(
        EntropyError,
        match=r"family autoencoder, expected oracle for the entropy of tokens",
    ):
        token_entropy(
            make_codec(Autoencoder(tiny_model(), VOCABULARY), IDS), {}, texts_of(), batch=2
        )
