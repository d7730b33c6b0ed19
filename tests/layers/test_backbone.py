"""A scanned stack against the same blocks one by one, with and without recomputation, compiled and
not."""

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import Backbone as Settings
from memjax.layers import Backbone, Block

LENGTH, WIDTH = 5, 8
KINDS = {
    "transformer": Settings(
        width=WIDTH, layers=3, heads=2, kv_heads=1, norm="layer", mlp="gelu", mlp_ratio=2
    ),
    "mixer": Settings(
        kind="mixer",
        width=WIDTH,
        layers=3,
        heads=2,
        channel_kernel=2,
        mlp_ratio=2,
        output_gate=True,
    ),
}
X = np.random.default_rng(0).normal(size=(2, LENGTH, WIDTH)).astype(np.float32)
VALID = np.array([[0, 1, 1, 1, 1], [1, 1, 1, 1, 0]], bool)
POSITIONS = np.array([[0, 0, 1, 2, 3], [4, 5, 6, 7, 8]])


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def stack(kind, draw):
    module = Backbone(KINDS[kind], LENGTH)
    return module, draw(module, X)


def loop(settings, params, x):
    for layer in range(settings.layers):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["blocks"])
        x, _ = Block(settings, LENGTH, jnp.float32).apply({"params": block}, x, POSITIONS, VALID)
    gain, bias = params["norm"]["scale"], params["norm"].get("bias", 0)
    if settings.norm == "layer":
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
    else:
        x = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return x * gain + bias


def test_a_block_is_traced_once_for_all_layers(stack):
    module, variables = stack
    calls = []

    def count(call, args, kwargs, context):
        calls.append((type(context.module), context.method_name))
        return call(*args, **kwargs)

    with nn.intercept_methods(count):
        jax.eval_shape(module.apply, variables, X)
    assert calls.count((Block, "__call__")) == 1


def test_stack_is_a_loop_over_its_layers(stack, kind, quick):
    module, variables = stack
    scanned, looped = quick(
        lambda v: (module.apply(v, X, POSITIONS, VALID), loop(KINDS[kind], v["params"], X))
    )(variables)
    np.testing.assert_allclose(scanned, looped, atol=2e-5)


def test_few_layers_that_keep_their_activations_are_no_loop(draw):
    def loops(layers, remat):
        settings = Settings(kind="mixer", width=WIDTH, layers=layers, heads=0, mlp_ratio=1)
        module = Backbone(settings, LENGTH, remat=remat)
        return jax.jit(module.apply).lower(draw(module, X), X).as_text().count("stablehlo.while")

    assert loops(4, "none") == 0
    assert loops(5, "none") == 1
    assert loops(4, "nothing_saveable") == 1


def test_every_block_parameter_is_stacked_over_layers(stack, kind):
    _, variables = stack
    blocks = flax.traverse_util.flatten_dict(variables["params"]["blocks"], sep="/")
    assert {leaf.shape[0] for leaf in blocks.values()} == {3}
    assert (
        "mix/mixing" in blocks
        if kind == "mixer"
        else blocks["mix/key/kernel"].shape == (3, WIDTH, 4)
    )
    assert all(leaf.ndim == 1 for leaf in jax.tree.leaves(variables["params"]["norm"]))


def test_positions_and_mask_count_from_zero_and_all_true_when_left_out(stack, quick):
    module, variables = stack
    counted = np.broadcast_to(np.arange(LENGTH), X.shape[:2])
    given, left_out = quick(
        lambda v: (module.apply(v, X, counted, np.ones_like(VALID)), module.apply(v, X))
    )(variables)
    assert np.array_equal(given, left_out)


def test_compiled_is_eager(draw, quick):
    module = Backbone(KINDS["mixer"], LENGTH)
    variables = draw(module, X)
    eager = module.apply(variables, X, POSITIONS, VALID)
    np.testing.assert_allclose(
        quick(module.apply)(variables, X, POSITIONS, VALID), eager, atol=2e-5
    )


def test_no_final_norm_gives_the_residual_stream(draw, quick):
    settings = Settings(kind="mixer", width=WIDTH, layers=1, heads=0, mlp_ratio=1, final_norm=False)
    module = Backbone(settings, LENGTH)
    silent = jax.tree.map(np.zeros_like, draw(module, X))
    assert set(silent["params"]) == {"blocks"}
    assert np.array_equal(quick(module.apply)(silent, X), X)


def test_recomputation_changes_neither_values_nor_gradients(quick, draw):
    settings = Settings(kind="mixer", width=WIDTH, layers=2, heads=2, mlp_ratio=2)
    policies = ("none", "nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable")
    modules = {remat: Backbone(settings, LENGTH, remat=remat) for remat in policies}
    variables = draw(modules["none"], X)

    def loss(variables, remat):
        return jnp.sum(modules[remat].apply(variables, X, POSITIONS, VALID) ** 3)

    results = quick(lambda v: {remat: jax.value_and_grad(loss)(v, remat) for remat in policies})(
        variables
    )
    for remat in policies[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
            results["none"],
            results[remat],
        )
    recomputes = {
        remat: "remat" in str(jax.make_jaxpr(lambda v, r=remat: loss(v, r))(variables))
        for remat in policies
    }
    assert recomputes == {remat: remat != "none" for remat in policies}


def test_bfloat16_stack_keeps_float32_parameters_and_stays_close(quick, draw, kind):
    narrow = Backbone(KINDS[kind], LENGTH, jnp.bfloat16)
    variables = draw(narrow, X)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    wide = Backbone(KINDS[kind], LENGTH)
    a, b = quick(lambda v: (narrow.apply(v, X), wide.apply(v, X)))(variables)
    assert a.dtype == jnp.bfloat16
    assert b.dtype == jnp.float32
    assert not np.array_equal(a.astype(np.float32), b)
    # 8 bits of mantissa through three layers of outputs of order one.
    assert np.abs(a.astype(np.float32) - b).mean() < 0.03


def test_layers_start_different_and_mixing_within_its_bound(quick):
    module = Backbone(
        Settings(kind="mixer", width=WIDTH, layers=3, heads=0, channel_kernel=4, mlp_ratio=1), 16
    )
    params = quick(module.init)(jax.random.key(0), np.zeros((1, 16, WIDTH), np.float32))["params"][
        "blocks"
    ]
    for leaf in (
        params["mix"]["mixing"],
        params["mix"]["mixing_bias"],
        params["mlp"]["up"]["kernel"],
    ):
        assert not np.array_equal(leaf[0], leaf[1])
        assert not np.array_equal(leaf[1], leaf[2])
    bound = 1 / np.sqrt(16 * 4)
    assert 0.99 * bound < np.abs(params["mix"]["mixing"]).max() <= bound
    assert np.abs(params["mix"]["mixing_bias"]).max() <= bound
    assert np.std(params["mix"]["mixing"]) == pytest.approx(bound / np.sqrt(3), rel=0.05)


@pytest.mark.parametrize(
    ("settings", "length", "parameters"),
    [
        # Measured on the reference implementation.
        (Settings(width=512), 8, 4_195_328),
        (Settings(width=1024), 8, 16_779_264),
        (Settings(kind="mixer", width=1024, heads=0, mlp="gelu", norm="layer"), 512, 8_660_480),
        (
            Settings(
                kind="mixer", width=1024, heads=0, mlp="gelu", norm="layer", channel_kernel=16
            ),
            512,
            12_592_640,
        ),
        (Settings(kind="mixer", width=1024, heads=4, mlp="gelu", norm="layer"), 512, 11_547_648),
    ],
    ids=lambda v: str(v) if isinstance(v, int) else v.kind,
)
def test_parameters_of_a_block_are_as_many_as_in_the_reference(settings, length, parameters):
    block = Block(settings, length, jnp.float32)
    x = jax.ShapeDtypeStruct((1, length, settings.width), jnp.float32)
    integers, mask = (
        jax.ShapeDtypeStruct((1, length), jnp.int32),
        jax.ShapeDtypeStruct((1, length), bool),
    )
    shapes = jax.eval_shape(block.init, jax.random.key(0), x, integers, mask)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters
