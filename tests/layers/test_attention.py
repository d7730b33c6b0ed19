"""Attention, rotary positions and the channel MLP against numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memjax.config import Backbone as Settings
from memjax.layers import MLP, Attention, rotate
from memjax.layers.attention import ADDRESS, LEAN
from memjax.layers.rotary import TextPositions

RNG = np.random.default_rng(0)


def turned(x, positions):
    """Rotation of each pair (i, i + E/2) as a product of complex numbers, in float64."""
    half = x.shape[-1] // 2
    pairs = x[..., :half].astype(np.float64) + 1j * x[..., half:]
    angles = positions[..., None, None] * 10_000.0 ** (-2 * np.arange(half) / x.shape[-1])
    pairs = pairs * np.exp(1j * angles)
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def test_rotation_is_a_product_with_complex_numbers(quick):
    x = RNG.normal(size=(2, 5, 3, 8)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3, 4], [7, 0, 100, 2000, 3]])
    out = quick(rotate)(x, positions)
    np.testing.assert_allclose(out, turned(x, positions), atol=2e-4)
    assert np.array_equal(out[0, 0], x[0, 0])
    assert quick(rotate)(x.astype(jnp.bfloat16), positions).dtype == jnp.bfloat16


@pytest.fixture(scope="module")
def scalar_product(quick):
    q, k = np.random.default_rng(2).normal(size=(2, 1, 1, 2, 8)).astype(np.float32)
    return quick(lambda m, n: jnp.sum(rotate(q, m) * rotate(k, n), axis=-1)[0, 0])


@given(query=st.integers(0, 500), key=st.integers(0, 500), shift=st.integers(1, 500))
def test_only_the_distance_of_two_positions_matters(scalar_product, query, key, shift):
    """Up to the rounding of angles, 2^-22 of each: the lengths of the pairs' products sum to 6."""
    angles = 2 * (query + key + shift)
    here = scalar_product(np.array([[query]]), np.array([[key]]))
    there = scalar_product(np.array([[query + shift]]), np.array([[key + shift]]))
    np.testing.assert_allclose(here, there, atol=6 * 2**-22 * angles + 1e-5)


def test_another_distance_is_another_product(scalar_product):
    near, far = (scalar_product(np.array([[9]]), np.array([[key]])) for key in (8, 3))
    assert np.all(np.abs(near - far) > 0.1)


def attended(p, settings, x, positions, valid):
    """Attention in float64, one query at a time. A query that may look at nothing is left out
    (NaN)."""
    batch, length, width = x.shape
    heads, each = settings.heads, width // settings.heads
    kv_heads = settings.kv_heads or heads
    q = turned((x @ p["query"]["kernel"]).reshape(batch, length, heads, each), positions)
    k = turned((x @ p["key"]["kernel"]).reshape(batch, length, kv_heads, each), positions)
    v = (x @ p["value"]["kernel"]).reshape(batch, length, kv_heads, each)
    out = np.full((batch, length, heads, each), np.nan)
    for b in range(batch):
        for t in range(length):
            for h in range(heads):
                g = h * kv_heads // heads
                seen = [s for s in range(t + 1) if valid[b, s]]
                if seen:
                    e = np.exp([q[b, t, h] @ k[b, s, g] / math.sqrt(each) for s in seen])
                    out[b, t, h] = e / e.sum() @ v[b, seen, g]
    out = out.reshape(batch, length, width)
    if settings.output_gate:
        out = out * (x @ p["gate"]["kernel"])
    return out @ p["out"]["kernel"]


@pytest.mark.parametrize(
    "settings",
    [
        Settings(width=16, heads=4),
        Settings(width=16, heads=4, kv_heads=2),
        Settings(width=16, heads=2, output_gate=True),
    ],
    ids=["full", "grouped", "gate"],
)
def test_attention_is_that_of_numpy(quick, draw, settings):
    x = RNG.normal(size=(2, 5, 16)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3, 4], [0, 0, 0, 9, 2]])
    valid = np.array([[1, 1, 0, 1, 1], [0, 0, 1, 1, 1]], bool)
    module = Attention(settings, jnp.float32)
    variables = draw(module, x, positions, valid)
    expected = attended(variables["params"], settings, x, positions, valid)
    out = np.asarray(quick(module.apply)(variables, x, positions, valid))
    defined = ~np.isnan(expected)
    assert defined.sum() == 8 * 16
    np.testing.assert_allclose(out[defined], expected[defined], atol=2e-5)
    assert np.all(np.isfinite(out))


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_heads_are_full_heads_with_repeated_keys_and_values(quick, draw, kv_heads):
    x = RNG.normal(size=(1, 4, 16)).astype(np.float32)
    args = (x, np.arange(4)[None], np.ones((1, 4), bool))
    grouped = Attention(Settings(width=16, heads=4, kv_heads=kv_heads), jnp.float32)
    full = Attention(Settings(width=16, heads=4), jnp.float32)
    params = draw(grouped, *args)["params"]

    def repeated(kernel):
        return kernel.reshape(16, kv_heads, 4).repeat(4 // kv_heads, axis=1).reshape(16, 16)

    wide = params | {
        name: {"kernel": repeated(params[name]["kernel"])} for name in ("key", "value")
    }
    a, b = quick(
        lambda p, w: (grouped.apply({"params": p}, *args), full.apply({"params": w}, *args))
    )(params, wide)
    np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
def test_mlp_is_that_of_numpy(quick, draw, mlp):
    x = RNG.normal(size=(2, 3, 8)).astype(np.float32)
    module = MLP(Settings(width=8, mlp=mlp, mlp_ratio=1.5), jnp.float32)
    variables = draw(module, x)
    p = variables["params"]
    if mlp == "gelu":
        h = x @ p["up"]["kernel"] + p["up"]["bias"]
        h = h * 0.5 * (1 + np.vectorize(math.erf)(h / math.sqrt(2)))
        expected = h @ p["down"]["kernel"] + p["down"]["bias"]
    else:
        gate = x @ p["gate"]["kernel"]
        expected = (gate / (1 + np.exp(-gate)) * (x @ p["up"]["kernel"])) @ p["down"]["kernel"]
        assert set(p["up"]) == set(p["gate"]) == set(p["down"]) == {"kernel"}
    assert p["up"]["kernel"].shape == (8, 12)
    np.testing.assert_allclose(quick(module.apply)(variables, x), expected, atol=1e-5)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_constant_addresses_are_looked_for_by_place_alone(quick, draw, kv_heads):
    """Place heads' queries of tokens and keys of memories depend on no input; others do."""
    features = ("constant_addresses", "log_scale")
    settings = Settings(width=16, heads=4, kv_heads=kv_heads, place_heads=2, features=features)
    module = Attention(settings, jnp.float32)
    is_entry, keys = np.array([True, True, False, False]), np.array([[1, 2, 3, 4]])
    positions = TextPositions(np.array([[0, 8, 16, 17]]), np.array([[0, 1, 2, 2]]))
    one, other = RNG.normal(size=(2, 1, 4, 16)).astype(np.float32)
    variables = draw(module, one, positions, np.ones((1, 4), bool))

    def project(x):
        return module.apply(variables, x, positions, is_entry, keys, method="_project")

    (query, key, value), (query_2, key_2, value_2) = quick(project)(one), quick(project)(other)
    places = 2 * kv_heads // 4
    same = np.isclose(query, query_2).all(axis=(0, 3)), np.isclose(key, key_2).all(axis=(0, 3))
    head = np.arange(4) < 2
    np.testing.assert_array_equal(same[0], ~is_entry[:, None] & head)
    np.testing.assert_array_equal(same[1], is_entry[:, None] & (np.arange(kv_heads) < places))
    assert not np.isclose(value, value_2).all(axis=(0, 3)).any()


@pytest.mark.quick_cases("2")
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_vectors_of_a_memory_at_one_place_have_keys_of_their_own(quick, kv_heads):
    """In a place head the bias of one vector is that of one per memory; the others' lie below."""
    features = ("constant_addresses",)
    settings = Settings(width=16, heads=4, kv_heads=kv_heads, place_heads=2, features=features)
    module = Attention(settings, jnp.float32, vectors=2)
    is_entry, keys = np.array([True, True, False]), np.array([[1, 2, 3]])
    same_place = np.zeros((1, 3), int)
    positions = TextPositions(same_place, same_place, np.array([[0, 1, 0]]))
    x = RNG.normal(size=(1, 3, 16)).astype(np.float32)
    given = jax.random.key(0), x, positions, np.ones((1, 3), bool)
    variables = module.init(*given)
    project = quick(lambda v: module.apply(v, x, positions, is_entry, keys, method="_project")[1])
    places = 2 * kv_heads // 4
    # At place 0 nothing is turned: a key is its bias.
    found = np.asarray(project(variables))[0, :2, :places]
    np.testing.assert_allclose(found.max(axis=0), ADDRESS)
    np.testing.assert_allclose(found.min(axis=0), ADDRESS - LEAN, rtol=1e-6)
    address = np.asarray(variables["params"]["vector_address"])
    assert address.shape == (2, kv_heads, 4) and not address[:, places:].any()
    assert "vector_address" not in Attention(settings, jnp.float32).init(*given)["params"]
