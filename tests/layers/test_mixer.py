"""Token mixing against sums written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone as Settings
from memjax.layers import TokenMixer, mix_tokens

RNG = np.random.default_rng(0)


def by_hand(x, weight, bias, causal):
    """The definition, one product at a time, in float64."""
    _, length, _, width = x.shape
    taps = weight.shape[1]
    y = np.zeros(x.shape) + bias.T[None, :, :, None].astype(np.float64)
    for t in range(length):
        for s in range(t + 1 if causal else length):
            for p in range(taps):
                for e in range(width):
                    source = e + p - (taps - 1) // 2
                    if 0 <= source < width:
                        y[:, t, :, e] += weight[:, p, t, s] * x[:, s, :, source]
    return y


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("taps", [1, 2, 3, 4, 8])
def test_mixing_is_a_convolution_over_channels(quick, taps, causal):
    x = RNG.normal(size=(2, 4, 2, 5)).astype(np.float32)
    weight, bias = (
        RNG.normal(size=(2, taps, 4, 4)).astype(np.float32),
        RNG.normal(size=(2, 4)).astype(np.float32),
    )
    mixed = quick(mix_tokens, static_argnums=3)(x, weight, bias, causal)
    np.testing.assert_allclose(mixed, by_hand(x, weight, bias, causal), atol=1e-5)


@pytest.mark.parametrize(
    ("taps", "offsets"), [(1, [0]), (2, [-1, 0]), (4, [-2, -1, 0, 1]), (8, list(range(-4, 4)))]
)
def test_an_impulse_reaches_the_channels_it_does_in_the_reference(quick, taps, offsets):
    """From channel 8 of token 1 to token 3; an even kernel's extra tap is on the right."""
    impulse = np.zeros((1, 4, 1, 16), np.float32)
    impulse[0, 1, 0, 8] = 1
    weight = np.ones((1, taps, 4, 4), np.float32)
    mixed = quick(mix_tokens)(impulse, weight, np.zeros((1, 4), np.float32))
    assert (np.flatnonzero(mixed[0, 3, 0]) - 8).tolist() == offsets
    assert not np.any(mixed[0, 0])


@pytest.mark.parametrize("taps", [1, 4])
def test_the_dead_triangle_gets_a_gradient_of_exactly_zero(quick, taps):
    x, bias = RNG.normal(size=(2, 5, 2, 8)).astype(np.float32), np.zeros((2, 5), np.float32)
    weight = RNG.normal(size=(2, taps, 5, 5)).astype(np.float32)
    gradient = np.asarray(quick(jax.grad(lambda w: jnp.sum(mix_tokens(x, w, bias) ** 2)))(weight))
    dead = np.triu(np.ones((5, 5), bool), 1)
    assert np.all(gradient[:, :, dead] == 0)
    assert np.all(gradient[:, :, ~dead] != 0)


def test_nothing_in_the_dead_triangle_is_ever_read(quick):
    x, bias = RNG.normal(size=(1, 4, 1, 6)).astype(np.float32), np.zeros((1, 4), np.float32)
    weight = np.tril(RNG.normal(size=(1, 2, 4, 4))).astype(np.float32)
    broken = np.where(np.triu(np.ones((4, 4), bool), 1), np.nan, weight)
    mix = quick(mix_tokens)
    assert np.array_equal(mix(x, weight, bias), mix(x, broken, bias))


def test_another_length_is_refused_with_both_lengths(draw):
    mixer = TokenMixer(Settings(kind="mixer", width=8, heads=0), 6, jnp.float32)
    variables = draw(mixer, np.zeros((1, 6, 8), np.float32), np.ones((1, 6), bool))
    with pytest.raises(ValueError, match="built for 6 positions got 5"):
        mixer.apply(variables, np.zeros((1, 5, 8), np.float32), np.ones((1, 5), bool))


def mixer_by_hand(p, settings, x, valid):
    batch, length, width = x.shape
    h = np.where(valid[..., None], x, 0)
    if settings.heads:
        h = np.where(valid[..., None], h @ p["in"]["kernel"] + p["in"]["bias"], 0)
    heads = max(settings.heads, 1)
    h = by_hand(h.reshape(batch, length, heads, -1), p["mixing"], p["mixing_bias"], True).reshape(
        batch, length, width
    )
    if settings.output_gate:
        h = h * (x @ p["gate"]["kernel"])
    return h @ p["out"]["kernel"] + p["out"]["bias"] if settings.heads else h


@pytest.mark.parametrize(
    "settings",
    [
        Settings(kind="mixer", width=8, heads=0, channel_kernel=2),
        Settings(kind="mixer", width=8, heads=2, channel_kernel=1),
        Settings(kind="mixer", width=8, heads=4, channel_kernel=2, output_gate=True),
    ],
    ids=["flat", "heads", "gate"],
)
def test_masked_positions_add_nothing_not_even_a_bias(quick, draw, settings):
    x = RNG.normal(size=(2, 5, 8)).astype(np.float32)
    valid = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0]], bool)
    mixer = TokenMixer(settings, 5, jnp.float32)
    variables = draw(mixer, x, valid)
    expected = mixer_by_hand(variables["params"], settings, x, valid)
    np.testing.assert_allclose(quick(mixer.apply)(variables, x, valid), expected, atol=1e-5)
