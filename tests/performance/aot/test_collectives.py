"""Collectives of real programs: eight simulated devices, and texts and programs of the TPU
compiler."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from memjax.config import Mesh
from memjax.performance.aot import hlo
from memjax.performance.aot.collectives import (
    Collective,
    Traffic,
    by_kind,
    collectives,
    group_size,
    total,
)
from memjax.performance.aot.topologies import devices
from memjax.sharding import make_mesh

EIGHT_DEVICES = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P

mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

def exchange(x):
    def body(c, _):
        c = jax.lax.psum(c, "fsdp")
        halve = lambda d, _: (jax.lax.psum(d, ("data", "fsdp")) / 2, None)
        inner = jax.lax.scan(halve, c, length=3)[0]
        return inner / 2, jax.lax.all_gather(c, "data")

    c, gathered = jax.lax.scan(body, x, length=5)
    scattered = jax.lax.psum_scatter(x, "fsdp", tiled=True)
    moved = jax.lax.ppermute(x, "data", [(0, 1), (1, 0)])
    return c, gathered.sum(), scattered, moved, jax.lax.all_to_all(x, "fsdp", 0, 0, tiled=True)

whole, rows, both = P("data", "fsdp"), P(), P(("data", "fsdp"))
outputs = (whole, rows, both, whole, whole)
split = jax.shard_map(exchange, mesh=mesh, in_specs=whole, out_specs=outputs, check_vma=False)
print(jax.jit(split).lower(jax.ShapeDtypeStruct((16, 16), jnp.float32)).compile().as_text())
"""


@pytest.fixture(scope="module")
def exchange():
    """The compiled text of EIGHT_DEVICES; a device holds [8, 4] float32, 128 bytes. Groups of 2 are
    those of `data`, of 4 those of `fsdp`, and of 8 those of both."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", EIGHT_DEVICES],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert not done.returncode, done.stderr[-3000:]
    return done.stdout


def found_in(text):
    return collectives(hlo.parse(text))


def facts(found):
    return {(one.kind, one.group): (one.network, one.bytes, one.times) for one in found}


def test_every_collective_of_a_program_is_found_as_often_as_it_runs(exchange):
    found = found_in(exchange)
    assert len(found) == 6
    assert facts(found) == {
        ("all-reduce", 4): ("ici", 128, 5),
        ("all-reduce", 8): ("ici", 128, 15),
        ("all-gather", 2): ("ici", 256, 5),
        ("reduce-scatter", 4): ("ici", 128, 1),
        ("collective-permute", 2): ("ici", 128, 1),
        ("all-to-all", 4): ("ici", 128, 1),
    }
    assert by_kind(found) == {
        "all-reduce": Traffic(20, 5 * 2 * 96 + 15 * 2 * 112),
        "all-gather": Traffic(5, 5 * 128),
        "reduce-scatter": Traffic(1, 96),
        "all-to-all": Traffic(1, 96),
        "collective-permute": Traffic(1, 128),
    }
    assert total(found) == Traffic(28, 960 + 3360 + 640 + 96 + 96 + 128)


def test_loops_are_counted_where_the_compiler_does_not_note_their_rounds(exchange):
    silent = exchange.replace("known_trip_count", "not_known")
    assert silent != exchange
    assert facts(found_in(silent)) == facts(found_in(exchange))


def test_a_device_sends_what_a_ring_makes_it_send():
    one = functools.partial(Collective, network="ici", bytes=1000, group=5, times=1)
    sent = {
        kind: one(kind).sent
        for kind in (
            "all-reduce",
            "all-gather",
            "reduce-scatter",
            "all-to-all",
            "collective-permute",
        )
    }
    assert sent == {
        "all-reduce": 1600,
        "all-gather": 800,
        "reduce-scatter": 800,
        "all-to-all": 800,
        "collective-permute": 1000,
    }


GROUPS = {
    "{{0,1},{2,3}}": 2,
    "{}": 4,
    "[2,2]<=[4]": 2,
    "[2,2]<=[2,2]T(1,0)": 2,
    "[4,2]<=[2,2,2]T(0,2,1)": 2,
    "mesh['axis_0'=4] {'axis_0'}": 4,
    "mesh['a'=2,'b'=3] {'a'}": 2,
    "mesh['a'=2,'b'=2,'c'=3] {'a','c'}": 6,
    "mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}": 4,
    "mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'b'}": 2,
    "mesh['a'=8] {'a':(2)2}": 2,
    "mesh[a=8] {a:(1)2,a:(4)2}": 4,
}


@pytest.mark.parametrize("text", GROUPS)
def test_sizes_of_groups_in_all_their_forms(text):
    attributes = f", channel_id=1, replica_groups={text}, use_global_device_ids=true"
    assert group_size(attributes, 4) == GROUPS[text]


def test_groups_in_another_form_are_refused():
    with pytest.raises(ValueError, match="got an unknown form"):
        group_size(", replica_groups=<0>", 4)


def stored(name):
    """What is cut from a program of the TPU compiler: names, layouts and attributes as it writes
    them."""
    return (Path(__file__).with_name("programs") / f"{name}.txt").read_text(encoding="utf-8")


def test_a_gather_that_runs_in_three_fusions_is_one():
    (one,) = found_in(stored("async_gather"))
    assert (one.kind, one.bytes, one.group, one.times) == ("all-gather", 2048 * 1024 * 2, 4, 1)


def test_an_all_reduce_of_which_a_part_is_kept_is_a_reduce_scatter():
    (one,) = found_in(stored("reduce_scatter"))
    whole = 2048 * 1024 * 2
    assert (one.kind, one.bytes, one.group, one.sent) == ("reduce-scatter", whole, 4, whole * 3 / 4)


def test_sends_between_slices_are_collectives_over_the_slow_network():
    reduced, gathered = found_in(stored("two_slices"))
    assert (reduced.kind, reduced.network) == ("all-reduce", "dcn")
    assert (reduced.bytes, reduced.group, reduced.sent) == (1 << 20, 2, 1 << 20)
    assert (gathered.kind, gathered.bytes, gathered.sent) == ("all-gather", 2 * 1024, 1024)


def test_an_asynchronous_collective_of_arrays_counts_once_and_one_device_alone_is_none():
    (one,) = found_in(stored("started"))
    assert (one.kind, one.group, one.bytes) == ("all-gather", 4, 4 * (8 * 4 + 2 * 4) * 4)


# With the compiler


@pytest.mark.slow
def test_layers_over_two_slices_gather_weights_within_and_sum_gradients_across():
    pytest.importorskip("libtpu")
    mesh = make_mesh(Mesh(data=2, fsdp=-1), devices("2xv5e-8"))
    layers, width, hidden, rows = 3, 512, 2048, 32
    places = [
        NamedSharding(mesh, PartitionSpec(*spec))
        for spec in ((None, "fsdp"), (None, None, "fsdp"), (("data", "fsdp"),))
    ]
    shapes = (layers, width, hidden), (layers, hidden, width), (rows, 512, width)
    up, down, x = (
        jax.ShapeDtypeStruct(*pair[:1], jnp.float32, sharding=pair[1])
        for pair in zip(shapes, places, strict=True)
    )

    def loss(weights, x):
        def body(h, pair):
            up, down = (w.astype(jnp.bfloat16) for w in pair)
            return h + (jnp.tanh(h.astype(jnp.bfloat16) @ up) @ down).astype(jnp.float32), None

        return jnp.sum(jax.lax.scan(body, x, weights)[0] ** 2)

    step = jax.jit(jax.grad(loss), out_shardings=tuple(places[:2]))
    found = found_in(step.lower((up, down), x).compile().as_text())
    large = [one for one in found if one.bytes >= 1e5]
    assert {one.group for one in large if one.network == "ici"} == {8}, "those of fsdp"
    # Each matrix in bfloat16: a device puts its eighth of every gradient on the slow network, once.
    matrix = width * hidden * 2
    across = [one for one in large if one.network == "dcn"]
    assert {(one.kind, one.bytes, one.group) for one in across} == {("all-reduce", matrix // 8, 2)}
    assert sum(one.times for one in across) == 2 * layers
    # Within a slice, of each matrix: gathered forward and again backward, and its gradient
    # scattered, or summed whole, which is as much again.
    within = sum(one.sent * one.times for one in large if one.network == "ici")
    assert 3 <= within / (2 * layers * matrix * 7 / 8) <= 4
