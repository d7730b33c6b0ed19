"""Four bits a number: values by hand, odd widths, and what is far from a normal distribution.

Shapes: E width, B = ceil(E / 2).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.checkpoints.int4 import LEVELS, packed, rotated, unpacked
from memjax.checkpoints.rounding import widened
from memjax.evaluation.instruments.quantisation import STORED_INT4, bits_a_number, quantise

LARGEST = np.finfo(np.float32).max


def again(vectors, width=None):
    vectors = np.asarray(vectors, np.float32)
    return widened(*packed(vectors), width or vectors.shape[-1])


def loss(vectors):
    """Squared error over the squares of a vector."""
    vectors = np.asarray(vectors, np.float64)
    return (((again(vectors) - vectors) ** 2).sum(-1) / (vectors**2).sum(-1)).max()


def test_values_by_hand():
    np.testing.assert_array_equal(LEVELS, -LEVELS[::-1])
    np.testing.assert_array_equal(LEVELS[8:], [4, 12, 21, 30, 40, 52, 66, 87])
    # Three numbers are not rotated, and the last four bits are none.
    stored, scales = packed(np.array([[87, -4, 12], [-43.5, 6, 2]], np.float32))
    assert stored.dtype == np.uint8 and scales.dtype == jnp.bfloat16
    np.testing.assert_array_equal(stored, [[15 | 7 << 4, 9], [0 | 9 << 4, 8]])
    np.testing.assert_array_equal(scales.astype(np.float32), [1, 0.5])
    np.testing.assert_array_equal(unpacked(stored, scales, 3), [[87, -4, 12], [-43.5, 6, 2]])
    # Four numbers are: (87, -4, 12, 21) by sums and differences of pairs, twice. The fourth of
    # each block has another sign.
    np.testing.assert_array_equal(rotated(np.array([87.0, -4, 12, 21])), [116, 82, 50, 100])
    vector = np.array([116, 82, 50, -100], np.float32)
    stored, scales = packed(vector)
    np.testing.assert_array_equal(stored, [15 | 7 << 4, 9 | 10 << 4])
    assert scales == 1
    np.testing.assert_array_equal(unpacked(stored, scales, 4), vector)


@pytest.mark.parametrize("width", [1, 2, 3, 5, 6, 12, 96, 127, 128])
def test_every_width_is_kept(width):
    draw = np.random.default_rng(width)
    levels = draw.integers(0, 16, (7, width))
    levels[:, 0] = 15  # The largest level is in use, so that its scale is tried.
    whole = levels[:, ::2] | np.append(levels, np.zeros((7, width % 2), int), 1)[:, 1::2] << 4
    exact = unpacked(whole.astype(np.uint8), np.full(7, 2.0**-7), width)
    stored, scales = packed(exact)
    np.testing.assert_array_equal(stored, whole)
    assert stored.shape == (7, (width + 1) // 2) and scales.shape == (7,)
    np.testing.assert_array_equal(unpacked(stored, scales, width), exact)
    assert loss(draw.normal(size=(200, width))) < 0.04
    bits = 8 * (stored.nbytes + scales.nbytes) / exact.size
    assert bits_a_number(STORED_INT4, (1, width)) == pytest.approx(bits)


def test_the_rotation_is_its_own_inverse():
    vectors = np.random.default_rng(0).normal(size=(3, 24))
    np.testing.assert_allclose(rotated(rotated(vectors)), 8 * vectors)
    np.testing.assert_allclose(rotated(vectors)[:, 8:16], rotated(vectors[:, 8:16]))
    from scipy.linalg import hadamard

    np.testing.assert_allclose(rotated(vectors[:, :8]), vectors[:, :8] @ hadamard(8), atol=1e-12)


def test_normal_numbers_lose_a_hundredth_of_their_square():
    vectors = np.random.default_rng(0).normal(size=(500, 128)).astype(np.float32)
    assert ((again(vectors) - vectors) ** 2).mean() < 0.0092, "Lloyd and Max reach 0.0095"
    vectors[:, 3] *= 20
    assert ((again(vectors) - vectors) ** 2).sum() / (vectors**2).sum() < 0.0092


def test_zeros_spikes_and_extremes_stay_finite_and_near():
    assert not again(np.zeros((2, 5))).any() and not again(np.zeros((2, 8))).any()
    assert packed(np.zeros((0, 2, 6), np.float32))[0].shape == (0, 2, 3)
    mixed = again([[0, 0, 0, 0], [8, 0, 0, 0]])
    np.testing.assert_allclose(mixed, [[0, 0, 0, 0], [8, 0, 0, 0]], rtol=0.002)
    for width in (5, 127, 128):
        spike = np.eye(1, width)
        for scale in (1e-30, 1, 1e30):
            # No level is 0: one number among zeros that is not rotated is the worst case.
            assert loss(spike * scale) < (0.22 if width == 127 else 0.01)
            assert loss(np.ones((1, width)) * scale) < 0.01
    for vector in ([LARGEST] * 8, [LARGEST, -LARGEST] * 4, [LARGEST] + [0] * 7, [-LARGEST] * 3):
        found = again(vector)
        assert np.isfinite(found).all() and loss(vector) < 0.1
    assert np.isfinite(again(np.full(8, 1e-45))).all()
    # A store from elsewhere may hold anything.
    found = widened(np.full((1, 64), 255, np.uint8), np.full(1, jnp.bfloat16(3e38)), 128)
    assert np.isfinite(found).all() and found[0, 0] == LARGEST


def test_a_compiled_function_rounds_alike():
    vectors = np.random.default_rng(1).normal(size=(3, 40, 31)).astype(np.float32)
    vectors[0, 0] = 0
    found = np.asarray(jax.jit(quantise, static_argnums=1)(vectors, STORED_INT4))
    assert found.dtype == np.float32
    same = np.isclose(found, again(vectors), rtol=1e-6).all(axis=-1)
    assert same.mean() > 0.98, "a sum of errors may differ in its last bit"
