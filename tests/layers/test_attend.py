"""The TPU kernel, emulated, against XLA's attention: outputs and gradients, on one device and split
over several."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

import memjax.layers.attend as module
from memjax.layers.attend import attend, block_length, choose

VALID = {
    "whole": lambda length: np.ones((2, length), bool),
    "left": lambda length: np.arange(length) >= np.array([[length // 3], [length - 1]]),
    "right": lambda length: np.arange(length) < np.array([[length // 3], [1]]),
    "slots": lambda length: np.arange(length) % 5 != np.array([[0], [2]]),
}


def draw(length, heads, kv_heads, width, dtype=np.float32, rows=2):
    """Query, key, value, and a direction the output's gradient is taken in."""
    rng = np.random.default_rng(length + width)
    return [
        rng.normal(size=(rows, length, n, width)).astype(dtype)
        for n in (heads, kv_heads, kv_heads, heads)
    ]


def run(quick, implementation, tensors, valid, causal):
    """Output and gradients of query, key and value. Outputs where there is padding are 0: nothing
    reads them."""

    def probe(query, key, value, direction):
        y = attend(query, key, value, jnp.asarray(valid), causal, implementation, interpret=True)
        read = jnp.where(valid[..., None, None], y, 0)
        return jnp.sum(read.astype(jnp.float32) * direction), (read, jnp.all(jnp.isfinite(y)))

    (_, (read, finite)), gradients = quick(
        jax.value_and_grad(probe, argnums=(0, 1, 2), has_aux=True)
    )(*tensors)
    assert finite
    return [np.asarray(x, np.float32) for x in (read, *gradients)]


@pytest.mark.quick_cases("40-2-2-16-True-right", "192-4-2-16-True-slots")
@pytest.mark.parametrize(
    ("length", "heads", "kv_heads", "width", "causal", "padding"),
    [
        (40, 2, 2, 16, True, "right"),
        (40, 4, 2, 16, False, "left"),
        (128, 2, 1, 64, True, "left"),
        (128, 1, 1, 128, True, "whole"),
        (192, 4, 2, 16, True, "slots"),
        (192, 2, 2, 64, False, "right"),
    ],
)
def test_kernel_is_attention(quick, length, heads, kv_heads, width, causal, padding):
    tensors, valid = draw(length, heads, kv_heads, width), VALID[padding](length)
    expected, found = (
        run(quick, implementation, tensors, valid, causal) for implementation in ("xla", "splash")
    )
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(b, a, atol=5e-6)
    assert [x.shape[2] for x in found] == [heads, heads, kv_heads, kv_heads]


@pytest.mark.parametrize(("causal", "padding"), [(True, "left"), (False, "slots")])
def test_several_blocks_are_one(quick, monkeypatch, causal, padding):
    monkeypatch.setattr(module, "LONGEST_BLOCK", 128)
    assert block_length(300) == 128
    tensors, valid = draw(300, 2, 1, 16), VALID[padding](300)
    expected, found = (
        run(quick, implementation, tensors, valid, causal) for implementation in ("xla", "splash")
    )
    for a, b in zip(expected, found, strict=True):
        np.testing.assert_allclose(b, a, atol=5e-6)


@pytest.mark.quick_cases("192-128-False")
@pytest.mark.parametrize(("length", "width", "causal"), [(128, 64, True), (192, 128, False)])
def test_bfloat16_is_as_near_to_float32_as_its_resolution(quick, length, width, causal):
    tensors, valid = draw(length, 2, 1, width, jnp.bfloat16), VALID["left"](length)
    exact = run(quick, "xla", [x.astype(np.float32) for x in tensors], valid, causal)
    for implementation in ("xla", "splash"):
        found = run(quick, implementation, tensors, valid, causal)
        for a, b in zip(exact, found, strict=True):
            # Steps of bfloat16 are 2^-8 of a number.
            assert np.linalg.norm(b - a) < 2**-8 * np.linalg.norm(a)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("implementation", ["whole", "blocks", "splash"])
def test_queries_are_at_the_last_positions_of_the_keys(quick, monkeypatch, implementation, causal):
    query, key, value, direction = draw(40, 4, 2, 16)
    valid = VALID["slots"](40)
    if implementation == "blocks":
        for name, size in (("LONGEST_WHOLE", 8), ("QUERY_BLOCK", 4), ("PREFIXES", 3)):
            monkeypatch.setattr(module, name, size)

    def last(query, key, value):
        return jnp.sum(found(query, key, value) * jnp.where(valid[..., None, None], direction, 0))

    def found(query, key, value):
        kind = "splash" if implementation == "splash" else "xla"
        y = attend(query[:, 23:], key, value, jnp.asarray(valid), causal, kind, interpret=True)
        return jnp.pad(y, ((0, 0), (23, 0), (0, 0), (0, 0)))

    def reference(query, key, value):
        scores = jnp.einsum("btgre,bsge->bgrts", query.reshape(2, 40, 2, 2, 16), key) / 4
        readable = valid[:, None] & (np.tri(40, dtype=bool) | (not causal))
        weight = jax.nn.softmax(jnp.where(readable[:, None, None], scores, -1e30), axis=-1)
        mixed = jnp.einsum("bgrts,bsge->btgre", weight, value).reshape(query.shape)
        read = valid & (np.arange(40) >= 23)
        return jnp.sum(mixed * jnp.where(read[..., None, None], direction, 0))

    ours, wanted = (
        quick(jax.value_and_grad(f, argnums=(0, 1, 2)))(query, key, value)
        for f in (last, reference)
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6, rtol=1e-5)


def test_blocks_are_few_equal_and_whole_registers():
    lengths = (1, 40, 128, 129, 515, 640, 641, 1028, 2048, 2049, 8192)
    assert [block_length(n) for n in lengths] == [
        128,
        128,
        128,
        256,
        640,
        640,
        384,
        640,
        512,
        640,
        640,
    ]


@pytest.mark.parametrize(
    ("kind", "length", "width", "chosen"),
    [
        ("TPU v4", 256, 256, "splash"),
        ("TPU v5 lite", 2048, 16, "splash"),
        ("TPU v5 lite", 255, 128, "xla"),
        ("TPU v5 lite", 2048, 257, "xla"),
        ("TPU v3", 2048, 128, "xla"),
        ("cpu", 2048, 128, "xla"),
        (None, 2048, 128, "xla"),
    ],
)
def test_auto_takes_the_kernel_where_shapes_and_the_mesh_allow_it(kind, length, width, chosen):
    device = kind and AbstractDevice(device_kind=kind, num_cores=1, platform=kind[:3].lower())
    with jax.sharding.use_abstract_mesh(AbstractMesh((2,), ("data",), abstract_device=device)):
        assert choose("auto", length, width) == chosen
        assert choose("xla", length, width) == "xla"
        assert choose("splash", length, width) == "splash"


def test_an_unknown_implementation_is_refused():
    with pytest.raises(
        ValueError, match="attention: got 'flash', expected one of auto, xla, splash"
    ):
        choose("flash", 512, 64)


def test_auto_on_a_cpu_is_the_reference():
    query, key, value, _ = draw(512, 2, 1, 16)
    valid = VALID["left"](512)
    found = jax.make_jaxpr(lambda q, k, v: attend(q, k, v, valid, True))(query, key, value)
    expected = jax.make_jaxpr(
        lambda q, k, v: jax.nn.dot_product_attention(
            q, k, v, mask=valid[:, None, None, :], is_causal=True
        )
    )(query, key, value)
    assert str(found) == str(expected)


DEVICES = """
import jax, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import test_attend as t
from jax.sharding import AxisType
mesh = jax.make_mesh((2, 1, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
valid = t.VALID["slots"](40)
# Key heads that split, and that do not; query heads that do not; rows that do not.
for rows, heads, kv_heads, held in [
    (2, 4, 2, (1, 2)), (2, 6, 3, (1, 3)), (2, 3, 1, (1, 3)), (1, 2, 1, (1, 1))
]:
    tensors = t.draw(40, heads, kv_heads, 16, rows=rows)
    expected = t.run(jax.jit, "xla", tensors, valid[:rows], True)
    with jax.set_mesh(mesh):
        found = t.run(jax.jit, "splash", tensors, valid[:rows], True)
        attend = jax.jit(t.attend, static_argnums=(4, 5, 6))
        output = attend(*tensors[:3], valid[:rows], True, "splash", True)
    for a, b in zip(expected, found):
        np.testing.assert_allclose(b, a, atol=5e-6)
    shard = output.addressable_shards[0].data
    assert (shard.shape[0], shard.shape[2]) == held, (rows, heads, kv_heads, shard.shape)
print("equal on 4 devices")
"""


@pytest.mark.slow
def test_each_device_computes_its_rows_and_heads():
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    }
    done = subprocess.run(
        [sys.executable, "-c", DEVICES, os.path.dirname(__file__)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "equal on 4 devices" in done.stdout, done.stderr[-2000:]
