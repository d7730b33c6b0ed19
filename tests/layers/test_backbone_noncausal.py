"""Stacks that read in both directions, the gradient of weights that are cut, and the SiLU
network."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone as Settings
from memjax.layers import MLP, Attention, Backbone, TokenMixer, mix_tokens

LENGTH, WIDTH = 5, 8
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, LENGTH, WIDTH)).astype(np.float32)
VALID = np.array([[1, 0, 1, 1, 1], [1, 1, 1, 1, 0]], bool)
STACKS = {
    "transformer": Settings(width=WIDTH, layers=1, heads=2, kv_heads=1, mlp_ratio=1),
    "flat": Settings(kind="mixer", width=WIDTH, layers=1, heads=0, mlp_ratio=1),
    "heads": Settings(
        kind="mixer",
        width=WIDTH,
        layers=1,
        heads=2,
        channel_kernel=2,
        mlp_ratio=1,
        output_gate=True,
    ),
}


@pytest.mark.quick_cases("transformer-False", "flat-False", "heads-True")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", STACKS)
def test_without_causality_every_output_depends_on_every_valid_input(quick, draw, name, causal):
    module = Backbone(dataclasses.replace(STACKS[name], causal=causal), LENGTH)
    variables = draw(module, X)
    direction = RNG.normal(size=WIDTH).astype(np.float32)

    @quick
    def reach(valid):
        """[T, S]: how much the output at t moves with the input at s."""

        def output(x):
            return module.apply(variables, x, None, valid)[0] @ direction

        return abs(jax.jacrev(output)(X[:1])).sum(axis=(1, 3))

    everything = reach(np.ones((1, LENGTH), bool))
    allowed = (
        np.tril(np.ones((LENGTH, LENGTH), bool)) if causal else np.ones((LENGTH, LENGTH), bool)
    )
    assert np.array_equal(everything != 0, allowed)
    valid = VALID[0]
    seen = reach(valid[None])
    assert np.array_equal(seen[valid] != 0, (allowed & valid)[valid])


def test_attention_without_causality_is_a_softmax_over_all_valid_positions(quick, draw):
    settings = Settings(width=WIDTH, heads=1, causal=False)
    module = Attention(settings, jnp.float32)
    # At one and the same position rotation changes no product.
    args = (X, np.zeros((2, LENGTH), int), VALID)
    variables = draw(module, *args)
    p = {name: variables["params"][name]["kernel"] for name in ("query", "key", "value", "out")}
    scores = np.einsum("btd,bsd->bts", X @ p["query"], X @ p["key"]) / np.sqrt(WIDTH)
    e = np.exp(scores) * VALID[:, None]
    expected = e / e.sum(-1, keepdims=True) @ (X @ p["value"]) @ p["out"]
    np.testing.assert_allclose(quick(module.apply)(variables, *args), expected, atol=1e-5)


def test_mixing_without_causality_uses_the_whole_matrix(quick, draw):
    module = TokenMixer(dataclasses.replace(STACKS["flat"], causal=False), LENGTH, jnp.float32)
    variables = draw(module, X, VALID)
    p = variables["params"]
    expected = p["mixing"][0, 0] @ np.where(VALID[..., None], X, 0) + p["mixing_bias"][0][:, None]
    np.testing.assert_allclose(quick(module.apply)(variables, X, VALID), expected, atol=1e-5)


# The gradient of what is cut

DEAD = np.triu(np.ones((LENGTH, LENGTH), bool), 1)


@pytest.mark.parametrize("taps", [1, 2])
def test_dense_gradient_is_that_of_a_matrix_that_is_not_cut(quick, taps):
    x, target = RNG.normal(size=(2, 2, LENGTH, 2, 4)).astype(np.float32)
    weight = RNG.normal(size=(2, taps, LENGTH, LENGTH)).astype(np.float32)
    bias = np.zeros((2, LENGTH), np.float32)

    @quick
    def mixed_and_gradient(weight):
        def run(causal, dense):
            def loss(weight):
                mixed = mix_tokens(x, weight, bias, causal, dense)
                return jnp.sum((mixed - target) ** 2), mixed

            gradient, mixed = jax.grad(loss, has_aux=True)(weight)
            return mixed, gradient

        return run(True, False), run(True, True), run(False, False), run(False, True)

    (cut, cut_gradient), (dense, dense_gradient), *_ = mixed_and_gradient(weight)
    *_, (whole, whole_gradient), (whole_dense, whole_dense_gradient) = mixed_and_gradient(
        np.where(DEAD, 0, weight)
    )
    assert np.array_equal(dense, cut)
    np.testing.assert_allclose(whole, cut, atol=1e-5)
    np.testing.assert_allclose(dense_gradient, whole_gradient, atol=1e-4)
    assert np.all(dense_gradient[..., DEAD] != 0)
    assert np.all(cut_gradient[..., DEAD] == 0)
    np.testing.assert_allclose(cut_gradient[..., ~DEAD], dense_gradient[..., ~DEAD], atol=1e-4)
    assert np.array_equal(whole_dense, whole)
    assert np.array_equal(whole_dense_gradient, whole_gradient)


def test_dense_gradient_of_a_stack_changes_nothing_but_the_dead_triangle(quick, draw):
    settings = dataclasses.replace(STACKS["heads"], layers=2)
    modules = [Backbone(settings, LENGTH), Backbone(settings, LENGTH, dense_gradient=True)]
    variables = draw(modules[0], X)

    def loss(variables, module):
        return jnp.sum(module.apply(variables, X, None, VALID) ** 3)

    (value, cut), (same, dense) = quick(
        lambda v: [jax.value_and_grad(loss)(v, module) for module in modules]
    )(variables)
    assert value == same
    triangles = [gradient["params"]["blocks"]["mix"].pop("mixing") for gradient in (cut, dense)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), cut, dense)
    np.testing.assert_allclose(
        triangles[0][..., ~DEAD], triangles[1][..., ~DEAD], rtol=1e-4, atol=1e-5
    )
    assert np.all(triangles[0][..., DEAD] == 0)
    assert np.all(np.any(triangles[1][..., DEAD] != 0, axis=-1))


def test_silu_network_is_that_of_numpy(quick, draw):
    module = MLP(Settings(width=WIDTH, mlp="silu", mlp_ratio=1.5), jnp.float32)
    variables = draw(module, X)
    p = variables["params"]
    assert jax.tree.map(np.shape, p) == {
        "up": {"kernel": (8, 12), "bias": (12,)},
        "down": {"kernel": (12, 8), "bias": (8,)},
    }
    h = X @ p["up"]["kernel"] + p["up"]["bias"]
    expected = h / (1 + np.exp(-h)) @ p["down"]["kernel"] + p["down"]["bias"]
    np.testing.assert_allclose(quick(module.apply)(variables, X), expected, atol=1e-5)
