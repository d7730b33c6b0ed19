"""XLA's attention over long rows, a block of queries at a time, against the whole in one
product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memjax.layers.attend as module
from memjax.layers.attend import attend
from memjax.training.flops import counted_flops

OPTIONS = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
VALID = {
    "whole": lambda length: np.ones((2, length), bool),
    "left": lambda length: np.arange(length) >= np.array([[length // 3], [length - 1]]),
    "right": lambda length: np.arange(length) < np.array([[length // 3], [1]]),
    "slots": lambda length: np.arange(length) % 5 != np.array([[0], [2]]),
}


def draw(length, heads, kv_heads, width, dtype=np.float32):
    """Query, key, value, and a direction the output's gradient is taken in."""
    rng = np.random.default_rng(length + width)
    return [
        rng.normal(size=(2, length, n, width)).astype(dtype)
        for n in (heads, kv_heads, kv_heads, heads)
    ]


def run(quick, tensors, valid, causal):
    """Output and gradients of query, key and value. Outputs where there is padding are 0: nothing
    reads them."""

    def probe(query, key, value, direction):
        y = attend(query, key, value, jnp.asarray(valid), causal, "xla")
        read = jnp.where(valid[..., None, None], y, 0)
        return jnp.sum(read.astype(jnp.float32) * direction), (read, jnp.all(jnp.isfinite(y)))

    (_, (read, finite)), gradients = quick(
        jax.value_and_grad(probe, argnums=(0, 1, 2), has_aux=True)
    )(*tensors)
    assert finite and read.dtype == tensors[0].dtype
    return [np.asarray(x, np.float32) for x in (read, *gradients)]


@pytest.fixture
def short_blocks(monkeypatch):
    """Rows of more than 16 positions are long, and blocks are of 4 queries."""

    def shorten(parts=3):
        monkeypatch.setattr(module, "LONGEST_WHOLE", 16)
        monkeypatch.setattr(module, "QUERY_BLOCK", 4)
        monkeypatch.setattr(module, "PREFIXES", parts)

    return shorten


@pytest.mark.quick_cases("45-4-2-True-left-3", "45-4-2-False-right-3")
@pytest.mark.parametrize(
    ("length", "heads", "kv_heads", "causal", "padding", "parts"),
    [
        (40, 2, 2, True, "whole", 2),
        # No whole number of blocks, and not as many in each part.
        (45, 4, 2, True, "left", 3),
        # Fewer blocks than parts.
        (17, 2, 1, True, "slots", 8),
        (45, 4, 2, False, "right", 3),
    ],
)
def test_blocks_are_the_whole(quick, short_blocks, length, heads, kv_heads, causal, padding, parts):
    tensors, valid = draw(length, heads, kv_heads, 8), VALID[padding](length)
    expected = run(quick, tensors, valid, causal)
    short_blocks(parts)
    for a, b in zip(expected, run(quick, tensors, valid, causal), strict=True):
        np.testing.assert_allclose(b, a, atol=5e-6)


def test_blocks_are_attention_worked_out_by_numpy(quick, short_blocks):
    query, key, value, _ = tensors = draw(21, 2, 1, 8)
    valid = VALID["slots"](21)
    scores = np.einsum("bqhe,bkge->bhqk", query, key) / np.sqrt(8)
    scores = np.where(valid[:, None, None, :] & np.tri(21, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True, initial=-1e9))
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-30)
    expected = np.einsum("bhqk,bkge->bqhe", weights, value)
    short_blocks()
    found, *_ = run(quick, tensors, valid, causal=True)
    np.testing.assert_allclose(found, np.where(valid[..., None, None], expected, 0), atol=5e-6)


def test_bfloat16_is_as_near_to_float32_as_its_resolution(quick, short_blocks):
    tensors, valid = draw(30, 2, 1, 16, jnp.bfloat16), VALID["left"](30)
    exact = run(quick, [x.astype(np.float32) for x in tensors], valid, causal=True)
    short_blocks()
    for a, b in zip(exact, run(quick, tensors, valid, causal=True), strict=True):
        # Steps of bfloat16 are 2^-8 of a number.
        assert np.linalg.norm(b - a) < 2**-8 * np.linalg.norm(a)


def lower(length, gradient, causal=True):
    """The program on one row of 2 heads, 8 wide."""

    def value(query, key, value):
        return attend(query, key, value, jnp.ones((1, length), bool), causal, "xla")

    def total(*tensors):
        return jnp.sum(value(*tensors) ** 2)

    shape = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
    return jax.jit(jax.grad(total, argnums=(0, 1, 2)) if gradient else value).trace(
        shape, shape, shape
    )


@pytest.mark.parametrize("gradient", [False, True], ids=["forward", "backward"])
def test_memory_grows_with_length_and_not_with_its_square(monkeypatch, gradient):
    monkeypatch.setattr(module, "LONGEST_WHOLE", 128)
    monkeypatch.setattr(module, "QUERY_BLOCK", 32)
    monkeypatch.setattr(module, "PREFIXES", 2)

    def temporaries(length):
        compiled = lower(length, gradient).lower().compile(compiler_options=OPTIONS)
        return compiled.memory_analysis().temp_size_in_bytes

    short, long = temporaries(1024), temporaries(4096)
    assert long < 4.5 * short
    # An eighth of the scores of all positions.
    assert long < 4 * 2 * 4096**2 / 8
    monkeypatch.setattr(module, "LONGEST_WHOLE", 4096)
    assert temporaries(4096) > 4 * 2 * 4096**2


def test_rows_up_to_the_limit_are_one_product_as_before():
    for length, loops in ((module.LONGEST_WHOLE, 0), (module.LONGEST_WHOLE + 1, module.PREFIXES)):
        assert str(lower(length, gradient=False).jaxpr).count("scan[") == loops
        assert str(lower(length, gradient=False, causal=False).jaxpr).count("scan[") == min(
            loops, 1
        )


def test_keys_that_no_query_of_a_part_reads_are_left_out():
    length = 8192
    whole = 2 * 2 * length**2 * 2 * 8
    assert counted_flops(lower(length, gradient=False, causal=False).jaxpr) == whole
    # Of 8 parts part n reads n eighths.
    assert counted_flops(lower(length, gradient=False).jaxpr) == whole * 36 / 64
