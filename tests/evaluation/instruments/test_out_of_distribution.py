"""Text a model was trained for, other text and random tokens, each scored on its own tokens."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from memjax.evaluation.instruments.information import zero_nats
from memjax.evaluation.instruments.out_of_distribution import out_of_distribution
from memjax.inference.codec import scores_of
from memjax.inference.texts import TextsError, random
from memjax.testing.progress import Recorder


def test_uniform_logits_score_ln_v_on_everything(trained_autoencoder) -> None:
    system, params, _, held_out = trained_autoencoder
    blank = params | {"head": {"kernel": np.zeros_like(params["head"]["kernel"])}}
    found = out_of_distribution(
        system, blank, {"held-out": held_out[:5], "random": random(7, 8, 40, system.ids)}, batch=4
    )
    for held in found.values():
        assert held.nats.value == pytest.approx(math.log(40), rel=1e-6)
        assert held.information.value == pytest.approx(1 - math.log(40) / zero_nats(40), rel=1e-5)
    assert (found["held-out"].nats.texts, found["random"].nats.texts) == (5, 7)


def test_a_trained_model_holds_text_and_not_random_tokens(
    trained_autoencoder, chain, quick
) -> None:
    system, params, _, held_out = trained_autoencoder
    noise = random(50, 8, 40, system.ids, seed=3)
    backwards = np.ascontiguousarray(chain(50, seed=9)[:, ::-1])
    recorder = Recorder()
    texts = {"held-out": held_out, "backwards": backwards, "random": noise}
    with recorder.active():
        found = out_of_distribution(system, params, texts, 50)
    assert recorder.bars == {"scores": [1] * 4}
    assert list(found) == list(texts)
    assert found["held-out"].information.low > 0.6
    assert found["held-out"].accuracy.low > 2 * found["random"].accuracy.high
    for other in ("backwards", "random"):
        assert found["held-out"].nats.high < found[other].nats.low
    # Its labels are the random tokens themselves.
    scores = quick(lambda params, tokens: scores_of(system, params, tokens))(
        params, jnp.asarray(noise)
    )
    assert found["random"].nats.value == pytest.approx(float(scores.nats.mean()), rel=1e-5)
    np.testing.assert_array_equal(scores.labels[:, 0], noise)


def test_the_texts_that_do_not_fit_are_named(trained_autoencoder) -> None:
    system, params, _, held_out = trained_autoencoder
    with pytest.raises(TextsError, match=r"^random: .*8 tokens"):
        out_of_distribution(system, params, {"held-out": held_out, "random": held_out[:, :5]})
    with pytest.raises(TextsError, match="texts: none, expected at least one kind"):
        out_of_distribution(system, params, {})
