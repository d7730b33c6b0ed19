"""Repeat mixers against an explicit matrix over positions, and their two forms against each
other."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.config import REPEATS
from memjax.config import Backbone as Settings
from memjax.layers import MLP, Backbone, Block, RepeatMixer
from memjax.layers.repeat import running_sum

LENGTH, WIDTH = 6, 8
RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, LENGTH, WIDTH)).astype(np.float32)
VALID = np.array([[1] * LENGTH, [0, 0, 1, 1, 1, 1], [1, 0, 1, 1, 0, 0]], bool)
SMALL = {"width": WIDTH, "layers": 2, "mlp_ratio": 1, "mlp": "silu"}


def settings(kind, heads=2, decay_length=1.5, gate=True, **kwargs):
    return Settings(
        kind=kind,
        heads=heads,
        decay_length=decay_length,
        output_gate=gate and heads > 0,
        **SMALL | kwargs,
    )


@pytest.fixture(scope="module")
def draw(draw):
    """As in the folder, with gamma within its bounds."""

    def variables(*args, **kwargs):
        flat = flax.traverse_util.flatten_dict(draw(*args, **kwargs))
        rng = np.random.default_rng(1)
        for path, leaf in flat.items():
            if path[-1] == "decay":
                flat[path] = rng.uniform(0.9, 1, leaf.shape).astype(leaf.dtype)
        return flax.traverse_util.unflatten_dict(flat)

    return variables


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(kind, marks=[pytest.mark.slow] if kind == "column_repeat" else [])
        for kind in REPEATS
    ],
)
def kind(request):
    return request.param


def assert_close(found, expected, tolerance):
    """Relative to the largest output, as float32 rounds."""
    found, expected = np.float32(found), np.float32(expected)
    assert np.abs(found - expected).max() <= tolerance * max(1, np.abs(expected).max())


# Against the definition


def matrix(p, kind, decay_length):
    """M [H, T, T] one entry at a time, in float64."""
    heads, length = p["mixing_bias"].shape
    m = np.zeros((heads, length, length))
    gamma = np.clip(np.float64(p["decay"]), 0.9, 1) if decay_length else np.ones((2, heads))
    for h in range(heads):
        for t in range(length):
            for s in range(t + 1):
                kept = gamma[:, h] ** ((t - s) / decay_length if decay_length else 0)
                if kind == "row_repeat":
                    m[h, t, s] = kept[0] * p["row"][h, s]
                elif kind == "column_repeat":
                    m[h, t, s] = kept[0] * p["column"][h, t]
                elif kind == "combined_repeat":
                    m[h, t, s] = kept[0] * p["row"][h, s] + kept[1] * p["column"][h, t]
                elif kind == "diagonal_repeat":
                    m[h, t, s] = p["diagonal"][h, t] if s == t else kept[0] * p["row"][h, s]
                elif h < heads // 2:
                    m[h, t, s] = kept[0] * p["column"][h, t]
                else:
                    m[h, t, s] = kept[0] * p["row"][h - heads // 2, s]
    return m


def by_hand(p, config, x, valid):
    h = np.where(valid[..., None], x, 0)
    if config.heads:
        h = np.where(valid[..., None], h @ p["in"]["kernel"] + p["in"]["bias"], 0)
    m = matrix(p, config.kind, config.decay_length)
    h = (
        np.einsum("hts,bshe->bthe", m, h.reshape(*x.shape[:2], len(m), -1))
        + p["mixing_bias"].T[:, :, None]
    )
    h = h.reshape(x.shape)
    if config.output_gate:
        h = h * (x @ p["gate"]["kernel"])
    return h @ p["out"]["kernel"] + p["out"]["bias"] if config.heads else h


@pytest.mark.parametrize("decay_length", [0, 1.5])
@pytest.mark.parametrize("heads", [0, 2])
def test_mixing_is_a_product_with_the_matrix_and_padding_adds_nothing(
    quick, draw, kind, heads, decay_length
):
    config = settings(kind, heads, decay_length)
    mixer = RepeatMixer(config, LENGTH, jnp.float32)
    variables = draw(mixer, X, VALID)
    expected = by_hand(variables["params"], config, X, VALID)
    np.testing.assert_allclose(quick(mixer.apply)(variables, X, VALID), expected, atol=1e-5)


def test_only_the_vectors_a_kind_uses_exist(kind):
    vectors = {
        "row_repeat": {"row": (4, LENGTH)},
        "column_repeat": {"column": (4, LENGTH)},
        "combined_repeat": {"row": (4, LENGTH), "column": (4, LENGTH)},
        "diagonal_repeat": {"row": (4, LENGTH - 1), "diagonal": (4, LENGTH)},
        "mixed_repeat": {"row": (2, LENGTH), "column": (2, LENGTH)},
    }[kind]
    linear = {"kernel": (WIDTH, WIDTH), "bias": (WIDTH,)}

    def shapes(config):
        mixer = RepeatMixer(config, LENGTH, jnp.float32)
        return jax.tree.map(
            np.shape, jax.eval_shape(mixer.init, jax.random.key(0), X, VALID)["params"]
        )

    sums = 2 if kind == "combined_repeat" else 1
    common = {"mixing_bias": (4, LENGTH), "in": linear, "out": linear}
    assert shapes(settings(kind, 4, 0, gate=False)) == vectors | common
    assert shapes(settings(kind, 4)) == vectors | common | {
        "decay": (sums, 4),
        "gate": {"kernel": (WIDTH, WIDTH)},
    }


@pytest.mark.parametrize("kind", ["combined_repeat", "diagonal_repeat"])
def test_first_weights(quick, kind):
    mixer = RepeatMixer(settings(kind, 8), 200, jnp.float32)
    x = np.zeros((1, 200, WIDTH), np.float32)
    p = quick(mixer.init)(jax.random.key(0), x, np.ones((1, 200), bool))["params"]
    for name in {"row", "column", "diagonal"} & set(p):
        assert np.std(p[name]) == pytest.approx(0.1, rel=0.1)
    assert not np.any(p["mixing_bias"])
    assert np.all(p["decay"] == 1)


# The running sum


@pytest.mark.parametrize("length", [1, 2, 7, 16])
def test_running_sum_and_its_gradients_are_those_of_a_matrix(quick, length):
    x, target = RNG.normal(size=(2, 2, length, 2, 3, 4)).astype(np.float32)
    factor = RNG.uniform(0.5, 1, (2, 3)).astype(np.float32)
    lag = np.arange(length)[:, None] - np.arange(length)

    def product(x, factor):
        m = jnp.where(lag >= 0, factor[..., None, None] ** np.maximum(lag, 0), 0)
        return jnp.einsum("khts,bskhe->btkhe", m, x)

    def run(function):
        def loss(x, factor):
            y = function(x, factor)
            return jnp.sum((y - target) ** 2), y

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(x, factor)

    found, expected = quick(lambda: (run(running_sum), run(product)))()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected
    )


@pytest.mark.parametrize("factor", [0.9, 0.999, 1.0])
def test_running_sum_stays_exact_where_powers_underflow(quick, factor):
    """0.9^4096 is far below the smallest float32; what is forgotten is forgotten and nothing else
    is lost."""
    x = RNG.normal(size=4096).astype(np.float32)
    expected, y = np.zeros(4096), 0.0
    for t in range(4096):
        y = expected[t] = np.float64(np.float32(factor)) * y + x[t]

    def total(x, factor):
        y = running_sum(x[None, :, None, None, None], factor[None, None])
        return jnp.sum(y), y.ravel()

    gradients, found = quick(jax.grad(total, argnums=(0, 1), has_aux=True))(x, np.float32(factor))
    assert_close(found, expected, 1e-5)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


# Gamma


def test_gamma_is_clipped_and_has_its_gradient_at_its_bounds_and_past_them(quick, draw):
    mixer = RepeatMixer(settings("row_repeat", 0, 2.0), LENGTH, jnp.float32)
    variables = draw(mixer, X, VALID)
    row, bias = (variables["params"][name] for name in ("row", "mixing_bias"))
    lag = np.arange(LENGTH)[:, None] - np.arange(LENGTH)

    def unclipped(gamma):
        m = jnp.where(lag >= 0, gamma ** (np.maximum(lag, 0) / 2.0) * row, 0)
        return jnp.sum(
            (
                jnp.where(
                    VALID[..., None], m @ jnp.where(VALID[..., None], X, 0) + bias[0][:, None], 0
                )
            )
            ** 2
        )

    def clipped(gamma):
        y = mixer.apply({"params": variables["params"] | {"decay": gamma.reshape(1, 1)}}, X, VALID)
        return jnp.sum(jnp.where(VALID[..., None], y, 0) ** 2)

    both = quick(
        lambda gamma, acts_as: (
            jax.value_and_grad(clipped)(gamma),
            jax.value_and_grad(unclipped)(acts_as),
        )
    )
    for gamma, acts_as in [(1, 1), (0.9, 0.9), (0.95, 0.95), (1.7, 1), (0.2, 0.9)]:
        (value, slope), (expected_value, expected_slope) = both(
            np.float32(gamma), np.float32(acts_as)
        )
        np.testing.assert_allclose(value, expected_value, rtol=1e-5)
        np.testing.assert_allclose(slope, expected_slope, rtol=1e-4)
        assert abs(slope) > 0.1


# Stacks


@pytest.fixture(scope="module")
def stack(kind, draw):
    module = Backbone(settings(kind), LENGTH)
    return module, draw(module, X)


@pytest.mark.quick_cases("row_repeat", "combined_repeat", "mixed_repeat")
def test_an_output_depends_on_all_earlier_inputs_and_on_no_later_one(quick, stack):
    module, variables = stack
    direction = RNG.normal(size=WIDTH).astype(np.float32)
    reach = quick(
        lambda: abs(jax.jacrev(lambda x: module.apply(variables, x)[0] @ direction)(X[:1])).sum(
            axis=(1, 3)
        )
    )()
    assert np.array_equal(reach != 0, np.tril(np.ones((LENGTH, LENGTH), bool)))


@pytest.mark.quick_cases("combined_repeat", "mixed_repeat")
def test_every_entry_of_every_weight_over_positions_has_a_gradient(quick, draw, kind):
    """With gamma where it starts, on the bound of its range."""
    module = Backbone(settings(kind), LENGTH)
    variables = draw(module, X)
    variables["params"]["blocks"]["mix"]["decay"] = np.ones_like(
        variables["params"]["blocks"]["mix"]["decay"]
    )
    target = RNG.normal(size=X.shape).astype(np.float32)
    gradient = quick(jax.grad(lambda v: jnp.sum(module.apply(v, X) * target)))(variables)["params"][
        "blocks"
    ]
    for name in {"row", "column", "diagonal", "mixing_bias", "decay"} & set(gradient["mix"]):
        assert np.all(gradient["mix"].pop(name) != 0), name
    for layers in jax.tree.leaves(gradient):
        assert np.all(np.any(layers.reshape(len(layers), -1) != 0, axis=1))


def test_block_has_the_channel_mlp_first(quick, draw, kind):
    config = settings(kind, norm="rms")
    block = Block(config, LENGTH, jnp.float32)
    positions = np.zeros(X.shape[:2], int)
    variables = draw(block, X, positions, VALID)
    p = variables["params"]
    mlp, mixer = MLP(config, jnp.float32), RepeatMixer(config, LENGTH, jnp.float32)

    def norm(x, gain):
        return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6) * gain["scale"]

    def one_by_one():
        x = X + mlp.apply({"params": p["mlp"]}, norm(X, p["mlp_norm"]))
        return x + mixer.apply({"params": p["mix"]}, norm(x, p["mix_norm"]), VALID)

    found, expected = quick(
        lambda: (block.apply(variables, X, positions, VALID)[0], one_by_one())
    )()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def stepped(module, variables, x, start=0):
    """Outputs from `start` on, one position at a time in one compiled loop, and the last state."""

    def body(state, at):
        y, state = module.apply(variables, jnp.asarray(x)[:, at], state, at, method="step")
        return state, y

    state, y = jax.lax.scan(body, module.initial_state(len(x)), jnp.arange(start, x.shape[1]))
    return jnp.moveaxis(y, 0, 1), state


@pytest.mark.quick_cases(
    "row_repeat-0-0-False", "combined_repeat-2-1.5-True", "mixed_repeat-2-1.5-True"
)
@pytest.mark.parametrize(("heads", "decay_length", "final_norm"), [(2, 1.5, True), (0, 0, False)])
def test_one_position_at_a_time_is_all_at_once(quick, draw, kind, heads, decay_length, final_norm):
    module = Backbone(settings(kind, heads, decay_length, final_norm=final_norm), LENGTH)
    variables = draw(module, X)
    (found, state), expected = quick(
        lambda: (stepped(module, variables, X), module.apply(variables, X))
    )()
    assert_close(found, expected, 1e-5)
    parts = heads or (2 if kind == "mixed_repeat" else 1)
    assert state.shape == (2, 3, 2 if kind == "combined_repeat" else 1, parts, WIDTH // parts)
    assert state.dtype == np.float32
    assert Backbone(module.config, 1000).initial_state(3).shape == state.shape


@pytest.mark.parametrize("kind", ["mixed_repeat"], indirect=True)
def test_a_row_that_begins_with_padding_can_be_stepped_from_its_first_token(quick, stack):
    module, variables = stack
    valid = np.broadcast_to(np.arange(LENGTH) >= 2, X.shape[:2])
    (found, _), expected = quick(
        lambda: (stepped(module, variables, X, start=2), module.apply(variables, X, None, valid))
    )()
    assert_close(found, expected[:, 2:], 1e-5)


@pytest.mark.parametrize("kind", ["diagonal_repeat"], indirect=True)
def test_past_the_last_position_there_is_no_output(quick, stack):
    module, variables = stack
    step = quick(
        lambda at: module.apply(variables, X[:, 0], module.initial_state(3), at, method="step")[0]
    )
    assert np.all(np.isfinite(step(LENGTH - 1)))
    assert np.all(np.isnan(step(LENGTH)))


@pytest.mark.parametrize("kind", ["combined_repeat", "diagonal_repeat"])
def test_bfloat16_keeps_float32_parameters_and_states_and_stays_close(quick, draw, kind):
    narrow, wide = Backbone(settings(kind), LENGTH, jnp.bfloat16), Backbone(settings(kind), LENGTH)
    variables = draw(narrow, X)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    a, (b, state), c = quick(
        lambda: (
            narrow.apply(variables, X),
            stepped(narrow, variables, X),
            wide.apply(variables, X),
        )
    )()
    assert (a.dtype, b.dtype, state.dtype) == (jnp.bfloat16, jnp.bfloat16, np.float32)
    # 8 bits of mantissa through two layers of outputs of order one.
    assert np.abs(np.float32(a) - c).mean() < 0.03
    assert np.abs(np.float32(b) - c).mean() < 0.03


@pytest.mark.parametrize("kind", ["combined_repeat"], indirect=True)
def test_recomputation_changes_neither_values_nor_gradients(quick, stack):
    module, variables = stack
    again = Backbone(module.config, LENGTH, remat="nothing_saveable")

    def loss(variables, module):
        return jnp.sum(module.apply(variables, X, None, VALID) ** 3)

    a, b = quick(lambda v: [jax.value_and_grad(loss)(v, m) for m in (module, again)])(variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), a, b)
    assert np.array_equal(
        again.initial_state(2), np.zeros((2, 2, *again.initial_state(2).shape[2:]))
    )


# What is refused


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"causal": False}, "causal: got False, expected True"),
        ({"channel_kernel": 2}, "channel_kernel: got 2, expected 1"),
        ({"heads": 3}, r"heads: got 3, expected a divisor of the width .*\(3 parts\)"),
        ({"heads": 3, "width": 6, "kind": "mixed_repeat"}, "heads: got 3, expected an even number"),
        (
            {"heads": 0, "width": 7, "kind": "mixed_repeat"},
            r"heads: got 0, expected a divisor of the width 7 .*\(2 parts\)",
        ),
    ],
    ids=str,
)
def test_impossible_settings_are_refused_by_name(wrong, message):
    config = Settings(**{"kind": "row_repeat", "heads": 2} | SMALL | wrong)
    x = jnp.zeros((1, LENGTH, config.width))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(Backbone(config, LENGTH).init, jax.random.key(0), x)


@pytest.mark.parametrize("kind", ["row_repeat"], indirect=True)
def test_another_length_is_refused_with_both_lengths(stack):
    module, variables = stack
    with pytest.raises(ValueError, match="built for 6 positions got 5"):
        jax.eval_shape(module.apply, variables, X[:, :5])


@pytest.mark.parametrize("kind", ["transformer", "mixer"])
def test_other_kinds_have_no_state(draw, kind):
    module = Backbone(Settings(kind=kind, heads=2, **SMALL), LENGTH)
    variables = draw(module, X)
    with pytest.raises(ValueError, match=f"kind='{kind}' has no state"):
        module.initial_state(2)
    with pytest.raises(ValueError, match=f"kind='{kind}' has no state"):
        module.apply(variables, X[:, 0], np.zeros((2, 3, 1, 2, 4)), 0, method="step")
