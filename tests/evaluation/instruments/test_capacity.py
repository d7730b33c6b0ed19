"""The capacity ceiling: optimised memories are those of a convex solver where there is one optimum,
and each text is optimised alone."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

from memjax.evaluation.instruments.capacity import (
    CapacityError,
    Prefix,
    capacity,
    default_lengths,
    kept,
)
from memjax.inference.codec import make_codec
from memjax.inference.texts import TextsError
from memjax.models import Autoencoder
from memjax.objectives import SpecialIds
from memjax.objectives.uncertainty import Estimate, to_json
from memjax.testing import tiny_model

IDS = SpecialIds()
LENGTH, VOCABULARY, WIDTH = 8, 40, 16


@pytest.fixture(scope="module")
def linear(draw):
    """An autoencoder whose logits are linear in its memory: logits [T, V] = tensordot(m [E],
    jacobian [E, T, V]) + offset [V]."""
    model = tiny_model()
    module = Autoencoder(
        dataclasses.replace(
            model, reconstructor=dataclasses.replace(model.reconstructor, final_norm=False)
        ),
        VOCABULARY,
    )
    params = draw(module, np.ones((1, LENGTH), np.int32))["params"]
    params["backbone"]["blocks"] = jax.tree.map(jnp.zeros_like, params["backbone"]["blocks"])
    kernel = np.asarray(params["head"]["kernel"], np.float64)
    windows = np.zeros((WIDTH, LENGTH, WIDTH // 2))
    for t in range(LENGTH):
        for j in range(WIDTH // 2):
            windows[(t + j) % WIDTH, t, j] = 1
    projection = {
        name: np.asarray(x, np.float64) for name, x in params["unroll_projection"].items()
    }
    return (
        make_codec(module, IDS),
        params,
        windows @ projection["kernel"] @ kernel,
        projection["bias"] @ kernel,
    )


def texts_of(count=4):
    return (
        np.random.default_rng(0)
        .integers(IDS.first_content, VOCABULARY, (count, LENGTH))
        .astype(np.int32)
    )


def loss_and_gradient(memory, text, jacobian, offset):
    """Nats of a text's tokens that are no padding, and their gradient in the memory."""
    z = np.tensordot(memory, jacobian, 1) + offset
    z -= z.max(axis=-1, keepdims=True)
    p = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
    real = np.flatnonzero(text != IDS.pad)
    nats = -np.log(p[real, text[real]]).sum()
    p[real, text[real]] -= 1
    return nats, np.einsum("tv,etv->e", p[real], jacobian[:, real])


@pytest.mark.slow
def test_the_ceiling_is_a_convex_solvers(linear):
    system, params, jacobian, offset = linear
    texts = texts_of()
    optima = [
        scipy.optimize.minimize(
            loss_and_gradient, np.zeros(WIDTH), (text, jacobian, offset), "L-BFGS-B", jac=True
        ).fun
        for text in texts
    ]
    assert min(optima) > 0.5, "there is an optimum, as texts do not fit"
    for start in ("encoder", "noise"):
        found = capacity(
            system, params, texts, [LENGTH], steps=400, rate=0.3, start=start
        ).prefixes[0]
        assert found.ceiling_nats.value == pytest.approx(sum(optima) / texts.size, rel=1e-3), start
    zero = sum(loss_and_gradient(np.zeros(WIDTH), text, jacobian, offset)[0] for text in texts)
    assert found.constant_nats.value == pytest.approx(zero / texts.size, rel=1e-4)
    encoder = found.encoder_nats.value * texts.size
    assert found.share.value == pytest.approx((zero - encoder) / (zero - sum(optima)), rel=1e-2)


@pytest.mark.slow
def test_the_first_update_goes_by_the_gradients_sign(linear):
    """Adam's first step is its rate in every number; the rate is in root mean squares of the
    encoder's memory."""
    system, params, jacobian, offset = linear
    texts = texts_of()
    memory = np.asarray(system.encode(params, texts), np.float64)[:, 0]
    expected = 0
    for text, own in zip(texts, memory, strict=True):
        start, gradient = loss_and_gradient(np.zeros(WIDTH), text, jacobian, offset)
        moved = -0.05 * np.sqrt((own**2).mean()) * np.sign(gradient)
        expected += min(start, loss_and_gradient(moved, text, jacobian, offset)[0])
    found = capacity(system, params, texts, [LENGTH], steps=1, rate=0.05, start="zeros").prefixes[0]
    assert found.ceiling_nats.value == pytest.approx(expected / texts.size, rel=1e-4)
    assert found.ceiling_nats.value < found.constant_nats.value


@pytest.mark.slow
def test_each_text_is_optimised_alone(linear):
    system, params, jacobian, offset = linear
    texts = texts_of(5)
    cut = np.where(np.arange(LENGTH) < 3, texts, IDS.pad)
    memory = np.asarray(system.encode(params, cut), np.float64)[:, 0]
    expected = []
    for text, own in zip(cut, memory, strict=True):
        size = np.sqrt((own**2).mean())
        z, optimizer = own / size, optax.adam(optax.cosine_decay_schedule(0.1, 6))
        state = optimizer.init(z)
        fewest = loss_and_gradient(own, text, jacobian, offset)[0]
        for _ in range(6):
            gradient = loss_and_gradient(z * size, text, jacobian, offset)[1]
            update, state = optimizer.update(gradient * size / 3, state)
            z = z + np.asarray(update)
            fewest = min(fewest, loss_and_gradient(z * size, text, jacobian, offset)[0])
        expected.append(fewest)
    found = capacity(system, params, texts, [3], steps=6, batch=2).prefixes[0]
    assert found.ceiling_nats.value == pytest.approx(sum(expected) / 15, rel=1e-4)
    assert found.ceiling_nats.texts == 5
    noisy = [
        capacity(system, params, texts, [3], steps=6, start="noise", batch=batch).prefixes[0]
        for batch in (2, 5)
    ]
    assert noisy[0].ceiling_nats.value == pytest.approx(noisy[1].ceiling_nats.value, rel=1e-5)
    assert noisy[0].ceiling_nats.value != pytest.approx(found.ceiling_nats.value, rel=1e-3)


def test_a_decoder_that_ignores_its_memory_has_no_ceiling_above_it(linear):
    system, params, *_ = linear
    deaf = params | {"unroll_projection": jax.tree.map(jnp.zeros_like, params["unroll_projection"])}
    found = capacity(system, deaf, texts_of(), [LENGTH], steps=6, batch=2).prefixes[0]
    assert found.ceiling_nats == found.constant_nats == found.encoder_nats
    assert math.isnan(found.share.value)
    assert to_json(found.share)["value"] is None


def test_lengths_that_are_kept_are_kept_from_the_shortest_on():
    def prefix(length, encoder, ceiling):
        right = [Estimate(x, x, x, 9) for x in (encoder, ceiling)]
        return Prefix(length, *right, *[Estimate(0.0, 0.0, 0.0, 9)] * 4)

    found = (prefix(2, 1.0, 1.0), prefix(4, 0.98, 0.99), prefix(8, 1.0, 0.995))
    assert kept(found, "encoder_accuracy") == 2
    assert kept(found, "ceiling_accuracy") == 8
    assert kept((prefix(2, 0.5, 1.0),), "encoder_accuracy") == 0
    assert (
        default_lengths(8) == (1, 2, 4, 8)
        and default_lengths(12) == (1, 2, 4, 8, 12)
        and default_lengths(1) == (1,)
    )


@pytest.mark.slow
def test_optimisation_keeps_what_a_trained_encoder_does_not(trained_autoencoder):
    system, params, train, held_out = trained_autoencoder
    mean = np.asarray(system.encode(params, train[:64])).mean(axis=0)
    found = capacity(system, params, held_out[:32], [4, 8], steps=60, constant=mean)
    for prefix in found.prefixes:
        assert prefix.ceiling_nats.value <= prefix.encoder_nats.value
    whole = found.prefixes[1]
    assert (
        whole.ceiling_nats.value < 0.5 * whole.encoder_nats.value < 0.5 * whole.constant_nats.value
    )
    assert whole.ceiling_accuracy.value > whole.encoder_accuracy.value + 0.05
    assert 0.3 < whole.share.low <= whole.share.value <= whole.share.high < 1
    assert found.window == 8


def test_what_cannot_be_asked_is_named(linear):
    system, params, *_ = linear
    texts = texts_of()
    with pytest.raises(
        CapacityError, match=r"lengths=\(4, 9\): expected 1 to 8 tokens, the texts of this model"
    ):
        capacity(system, params, texts, [9, 4])
    with pytest.raises(CapacityError, match="start: 'mean', expected one of encoder, zeros, noise"):
        capacity(system, params, texts, start="mean")
    with pytest.raises(CapacityError, match="steps=0"):
        capacity(system, params, texts, steps=0)
    with pytest.raises(
        CapacityError,
        match=r"constant memory: shape \(16,\), expected \(1, 16\)",
    ):
        capacity(system, params, texts, constant=np.zeros(16))
    with pytest.raises(TextsError):
        capacity(system, params, texts[:0])
