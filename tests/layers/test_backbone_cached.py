"""A transformer stepped from its keys and values gives what it gives for all positions at once."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone as Settings
from memjax.layers import Backbone

LENGTH, WIDTH = 7, 16
SETTINGS = Settings(width=WIDTH, layers=2, heads=4, kv_heads=2, mlp_ratio=1.0, output_gate=True)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, LENGTH, WIDTH)).astype(np.float32)
VALID = np.array([[1] * LENGTH, [0, 0, 1, 1, 1, 1, 1], [1, 0, 0, 1, 1, 1, 1]], bool)
POSITIONS = np.maximum(np.cumsum(VALID, axis=1) - 1, 0)


@pytest.mark.quick_cases("settings0-float32-none-2e-05")
@pytest.mark.parametrize(
    ("settings", "dtype", "remat", "tolerance"),
    [
        (SETTINGS, jnp.float32, "none", 2e-5),
        (
            dataclasses.replace(SETTINGS, final_norm=False, output_gate=False),
            jnp.float32,
            "nothing_saveable",
            2e-5,
        ),
        (SETTINGS, jnp.bfloat16, "none", 0.1),
    ],
)
def test_rows_at_different_places_step_to_what_all_positions_give(
    quick, draw, settings, dtype, remat, tolerance
):
    stack = Backbone(settings, LENGTH, dtype, remat)
    variables = draw(stack, X, POSITIONS, VALID)
    whole = quick(stack.apply)(variables, X, POSITIONS, VALID)
    read, cache = quick(lambda v, *args: stack.apply(v, *args, method="read"))(
        variables, X[:, :3], POSITIONS[:, :3], VALID[:, :3]
    )
    assert cache.key.shape == cache.value.shape == (2, 3, 2, 3, 4) and cache.key.dtype == dtype
    np.testing.assert_allclose(
        np.float32(read)[VALID[:, :3]], np.float32(whole[:, :3])[VALID[:, :3]], atol=tolerance
    )
    # What the places hold before they are stepped to must not matter.
    cache = type(cache)(
        *(
            np.pad(x, ((0, 0), (0, 0), (0, 0), (0, LENGTH - 3), (0, 0)), constant_values=50)
            for x in cache
        )
    )
    step, rows = quick(lambda v, *args: stack.apply(v, *args, method="cached_step")), np.arange(3)
    # LENGTH is no place: such a row waits.
    for at in ([3, 3, 3], [4, 4, LENGTH], [5, 5, 4], [6, LENGTH, 5], [LENGTH, 6, 6]):
        at, before = np.array(at), cache
        here = np.minimum(at, LENGTH - 1)
        found, cache = step(variables, X[rows, here], cache, POSITIONS[rows, here], at, VALID)
        stepped = at < LENGTH
        expected = np.float32(whole)[rows, here]
        np.testing.assert_allclose(np.float32(found)[stepped], expected[stepped], atol=tolerance)
        assert all(
            np.array_equal(new[:, ~stepped], old[:, ~stepped])
            for new, old in zip(cache, before, strict=True)
        )


def test_only_causal_attention_has_keys_and_values(draw):
    for change, what in (
        ({"kind": "mixer", "kv_heads": 0}, "a mixer has no keys"),
        ({"causal": False}, "causal=False has no keys"),
    ):
        stack = Backbone(dataclasses.replace(SETTINGS, **change), LENGTH)
        variables = draw(stack, X)
        with pytest.raises(ValueError, match=what):
            stack.apply(variables, X, POSITIONS, VALID, method="read")
