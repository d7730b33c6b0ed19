"""Collectives of real programs: eight simulated devices, and texts and programs of the TPU compiler."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from memjax.aot import hlo
from memjax.aot.collectives import Collective, Traffic, by_kind, collectives, replica_groups, total
from memjax.aot.topologies import devices
from memjax.config import Mesh
from memjax.sharding import make_mesh

ROOT = Path(__file__).parents[2]
MESH = {"data": 2, "fsdp": 4}
EIGHT_DEVICES = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P

mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

def exchange(x):
    def body(c, _):
        c = jax.lax.psum(c, "fsdp")
        inner = jax.lax.scan(lambda d, _: (jax.lax.psum(d, ("data", "fsdp")) / 2, None), c, length=3)[0]
        return inner / 2, jax.lax.all_gather(c, "data")

    c, gathered = jax.lax.scan(body, x, length=5)
    scattered = jax.lax.psum_scatter(x, "fsdp", tiled=True)
    moved = jax.lax.ppermute(x, "data", [(0, 1), (1, 0)])
    return c, gathered.sum(), scattered, moved, jax.lax.all_to_all(x, "fsdp", 0, 0, tiled=True)

whole, rows, both = P("data", "fsdp"), P(), P(("data", "fsdp"))
split = jax.shard_map(exchange, mesh=mesh, in_specs=whole, out_specs=(whole, rows, both, whole, whole), check_vma=False)
print(jax.jit(split).lower(jax.ShapeDtypeStruct((16, 16), jnp.float32)).compile().as_text())
"""


@pytest.fixture(scope="module")
def exchange():
    """The compiled text of EIGHT_DEVICES; a device holds [8, 4] float32, 128 bytes."""
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


def facts(found):
    return {(one.kind, one.axes): (one.network, one.bytes, one.group, one.times) for one in found}


def test_every_collective_of_a_program_is_found_as_often_as_it_runs(exchange):
    found = collectives(exchange, MESH)
    assert facts(found) == {
        ("all-reduce", ("fsdp",)): ("ici", 128, 4, 5),
        ("all-reduce", ("data", "fsdp")): ("ici", 128, 8, 15),
        ("all-gather", ("data",)): ("ici", 256, 2, 5),
        ("reduce-scatter", ("fsdp",)): ("ici", 128, 4, 1),
        ("collective-permute", ("data",)): ("ici", 128, 2, 1),
        ("all-to-all", ("fsdp",)): ("ici", 128, 4, 1),
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
    assert facts(collectives(silent, MESH)) == facts(collectives(exchange, MESH))


def test_what_crosses_slices_goes_over_the_slow_network(exchange):
    networks = {(one.kind, one.axes): one.network for one in collectives(exchange, MESH, slice_devices=4)}
    assert networks == {
        ("all-reduce", ("fsdp",)): "ici",
        ("all-reduce", ("data", "fsdp")): "dcn",
        ("all-gather", ("data",)): "dcn",
        ("reduce-scatter", ("fsdp",)): "ici",
        ("collective-permute", ("data",)): "dcn",
        ("all-to-all", ("fsdp",)): "ici",
    }
    assert total(collectives(exchange, MESH, slice_devices=4)) == Traffic(28, 960 + 96 + 96, 3360 + 640 + 128)


def test_axes_are_named_only_where_groups_follow_them(exchange):
    assert {one.axes for one in collectives(exchange)} == {()}
    assert {one.axes for one in collectives(exchange, {"a": 3, "b": 5})} == {()}
    transposed = facts(collectives(exchange, {"fsdp": 4, "data": 2}))
    assert ("all-reduce", ()) in transposed


def test_a_device_sends_what_a_ring_makes_it_send():
    one = functools.partial(Collective, "name", network="ici", bytes=1000, group=5, times=1)
    sent = {kind: one(kind).sent for kind in ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")}
    assert sent == {"all-reduce": 1600, "all-gather": 800, "reduce-scatter": 800, "all-to-all": 800, "collective-permute": 1000}


GROUPS = {
    "{{0,1},{2,3}}": [[0, 1], [2, 3]],
    "{}": [[0, 1, 2, 3]],
    "[2,2]<=[4]": [[0, 1], [2, 3]],
    "[2,2]<=[2,2]T(1,0)": [[0, 2], [1, 3]],
    "[4,2]<=[2,2,2]T(0,2,1)": [[0, 2], [1, 3], [4, 6], [5, 7]],
    "mesh['axis_0'=4] {'axis_0'}": [[0, 1, 2, 3]],
    "mesh['a'=2,'b'=2] {'a'}": [[0, 2], [1, 3]],
    "mesh['a'=2,'b'=2,'c'=2] {'a','c'}": [[0, 1, 4, 5], [2, 3, 6, 7]],
    "mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}": [[0, 2], [1, 3]],
    "mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'b'}": [[3, 2], [1, 0]],
    "mesh['a'=8] {'a':(2)2}": [[0, 2], [1, 3], [4, 6], [5, 7]],
    "mesh[a=8] {a:(1)2,a:(4)2}": [[0, 1, 4, 5], [2, 3, 6, 7]],
}


@pytest.mark.parametrize("text", GROUPS)
def test_replica_groups_in_all_their_forms(text):
    found = replica_groups(f", channel_id=1, replica_groups={text}, use_global_device_ids=true", 4)
    assert sorted(map(sorted, found.tolist())) == sorted(map(sorted, GROUPS[text]))


def test_groups_in_another_form_are_refused():
    with pytest.raises(ValueError, match="form that is not known"):
        replica_groups(", replica_groups=<0>", 4)


def stored(name):
    """What is cut from a program of the TPU compiler: names, layouts and attributes as it writes them."""
    return (Path(__file__).with_name("programs") / f"{name}.txt").read_text(encoding="utf-8")


def test_a_gather_that_runs_in_three_fusions_is_one():
    (one,) = collectives(stored("async_gather"), {"fsdp": 4, "tensor": 2})
    assert (one.kind, one.bytes, one.group, one.times, one.axes) == ("all-gather", 2048 * 1024 * 2, 4, 1, ("fsdp",))


def test_an_all_reduce_of_which_a_part_is_kept_is_a_reduce_scatter():
    (one,) = collectives(stored("reduce_scatter"), {"fsdp": 4, "tensor": 2})
    assert (one.kind, one.bytes, one.sent, one.axes) == ("reduce-scatter", 2048 * 1024 * 2, 2048 * 1024 * 2 * 3 / 4, ("fsdp",))


def test_sends_between_slices_are_collectives_over_the_slow_network():
    reduced, gathered = collectives(stored("two_slices"), {"data": 2, "fsdp": 8})
    assert (reduced.name, reduced.kind, reduced.network) == ("all-reduce.23_0", "all-reduce", "dcn")
    assert (reduced.bytes, reduced.group, reduced.sent, reduced.axes) == (1 << 20, 2, 1 << 20, ("data",))
    assert (gathered.kind, gathered.bytes, gathered.sent) == ("all-gather", 2 * 1024, 1024)


def test_an_asynchronous_collective_of_several_arrays_is_counted_once_and_one_device_alone_is_none():
    (one,) = collectives(hlo.parse(stored("started")))
    assert (one.kind, one.group, one.bytes) == ("all-gather", 4, 4 * (8 * 4 + 2 * 4) * 4)


# With the compiler


def test_a_stack_of_layers_over_two_slices_gathers_its_weights_within_and_sums_its_gradients_across():
    pytest.importorskip("libtpu")
    mesh = make_mesh(Mesh(data=2, fsdp=-1), devices("2xv5e-8"))
    layers, width, hidden, rows = 3, 512, 2048, 32
    places = [NamedSharding(mesh, PartitionSpec(*spec)) for spec in ((None, "fsdp"), (None, None, "fsdp"), (("data", "fsdp"),))]
    shapes = (layers, width, hidden), (layers, hidden, width), (rows, 512, width)
    up, down, x = (jax.ShapeDtypeStruct(*pair[:1], jnp.float32, sharding=pair[1]) for pair in zip(shapes, places, strict=True))

    def loss(weights, x):
        def body(h, pair):
            up, down = (w.astype(jnp.bfloat16) for w in pair)
            return h + (jnp.tanh(h.astype(jnp.bfloat16) @ up) @ down).astype(jnp.float32), None

        return jnp.sum(jax.lax.scan(body, x, weights)[0] ** 2)

    step = jax.jit(jax.grad(loss), out_shardings=tuple(places[:2]))
    found = collectives(step.lower((up, down), x).compile().as_text(), mesh.shape)
    large = [one for one in found if one.bytes >= 1e5]
    assert {one.axes for one in large if one.network == "ici"} == {("fsdp",)}
    # Each matrix in bfloat16: a device puts its eighth of every gradient on the slow network, once.
    matrix = width * hidden * 2
    across = [one for one in large if one.network == "dcn"]
    assert {(one.kind, one.bytes, one.group, one.axes) for one in across} == {("all-reduce", matrix // 8, 2, ("data",))}
    assert sum(one.times for one in across) == 2 * layers
    # Within a slice, of each matrix: gathered forward and again backward, and its gradient scattered, or summed whole, which is as much
    # again.
    within = sum(one.sent * one.times for one in large if one.network == "ici")
    assert 3 <= within / (2 * layers * matrix * 7 / 8) <= 4
