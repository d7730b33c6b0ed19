"""Bounds computed by hand, and the traffic of compiled programs against XLA's own count where
nothing loops."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from memjax.performance.aot.hlo import parse
from memjax.performance.aot.roofline import Work, hbm_bytes, roofline
from memjax.sharding.chips import CHIPS, Chip

CHIP = Chip("a chip", flops=100.0, hbm=1, hbm_rate=10.0, ici_rate=8.0, dcn_rate=2.0)


def test_a_program_that_computes_twice_what_the_model_needs_has_half_the_peak():
    found = roofline(
        Work(model_flops=200, hardware_flops=400, hbm_bytes=20, ici_bytes=16, dcn_bytes=2), CHIP
    )
    assert (found.compute, found.hbm, found.ici, found.dcn) == (4.0, 2.0, 2.0, 1.0)
    assert (found.binds, found.seconds, found.mfu) == ("compute", 4.0, 0.5)
    assert (found.intensity, found.ridge) == (20.0, 10.0)


@pytest.mark.parametrize(
    ("work", "binds", "seconds"),
    [
        (Work(200, 400, hbm_bytes=80), "hbm", 8.0),
        (Work(200, 400, hbm_bytes=20, ici_bytes=80), "ici", 10.0),
        (Work(200, 400, hbm_bytes=20, ici_bytes=16, dcn_bytes=40), "dcn", 20.0),
    ],
)
def test_what_takes_longest_binds(work, binds, seconds):
    found = roofline(work, CHIP)
    assert (found.binds, found.seconds) == (binds, seconds)
    assert found.mfu == 200 / 100 / seconds


def test_a_product_of_square_matrices_is_bound_by_arithmetic_from_some_size_on():
    # Three matrices of n^2 in bfloat16: n / 3 FLOPs a byte against the chip's 240.5.
    def square(n):
        return roofline(Work(2 * n**3, 2 * n**3, 3 * 2 * n**2), CHIPS["v5e"])

    assert square(721).binds == "hbm"
    assert square(722).binds == "compute"
    assert square(722).mfu == 1.0
    assert square(361).mfu == pytest.approx(0.5, rel=1e-3)


# Bytes


X, W = jax.ShapeDtypeStruct((256, 512), jnp.float32), jax.ShapeDtypeStruct((512, 1024), jnp.float32)
AT = jax.ShapeDtypeStruct((), jnp.int32)
PROGRAMS = {
    "product": (lambda x, w: jnp.tanh(x @ w) * 2, X, W),
    "slice": (lambda x: x[3:5] + 1, X),
    "sum of a moving slice": (lambda x, i: jax.lax.dynamic_slice(x, (i, 0), (4, 512)).sum(), X, AT),
    "sort": (lambda x: jnp.sort(x, axis=0), X),
    "two results": (lambda x: (jnp.sum(x, axis=0), x.T), X),
}


def compiled(function, *args, **options):
    return jax.jit(function, **options).lower(*args).compile()


@pytest.mark.parametrize("name", PROGRAMS)
def test_bytes_are_those_xla_counts_where_nothing_loops(name):
    program = compiled(*PROGRAMS[name])
    # XLA counts the pointers of a tuple too.
    assert hbm_bytes(parse(program.as_text())) == pytest.approx(
        program.cost_analysis()["bytes accessed"], abs=16
    )


def test_of_a_table_only_the_rows_taken_are_read():
    program = compiled(
        lambda table, ids: jnp.take(table, ids, axis=0), W, jax.ShapeDtypeStruct((7,), jnp.int32)
    )
    rows = 7 * 1024 * 4
    assert 2 * rows <= hbm_bytes(parse(program.as_text())) <= 3 * rows
    assert program.cost_analysis()["bytes accessed"] > 512 * 1024 * 4


def test_a_loop_counts_its_rounds():
    stack = jax.ShapeDtypeStruct((10, 512, 512), jnp.float32)
    program = compiled(
        lambda x, weights: jax.lax.scan(lambda h, w: (h @ w, None), x, weights)[0], X, stack
    )
    matrix, state = 512 * 512 * 4, 256 * 512 * 4
    moved = hbm_bytes(parse(program.as_text()))
    # At least what each product reads and writes; at most each of it copied once more.
    assert 10 * (matrix + 2 * state) <= moved <= 10 * (3 * matrix + 5 * state)
    assert moved > 5 * program.cost_analysis()["bytes accessed"]


def stored(name):
    """What is cut from a program of the TPU compiler, or written as it writes."""
    return (Path(__file__).with_name("programs") / f"{name}.txt").read_text(encoding="utf-8")


def test_what_stays_on_the_chip_is_not_traffic_and_an_update_writes_what_it_puts_in():
    tile = 64 * 128 * 4
    # x and a slice are brought in, their sum stays, and is written into its place.
    assert hbm_bytes(parse(stored("on_chip"))) == 3 * tile
    assert (
        hbm_bytes(parse(stored("on_chip").replace("S(1)", "")))
        == 2 * tile + 2 * tile + 3 * tile + 2 * tile
    )


def test_a_copy_of_what_was_updated_in_place_is_written_whole():
    whole, tile = 10 * 64 * 128 * 4, 64 * 128 * 4
    copy = "ROOT %all = f32[10,64,128]{2,1,0:T(8,128)} copy(%updated)"
    text = (
        stored("on_chip")
        .replace("ROOT %updated", "%updated")
        .replace("calls=%update\n", f"calls=%update\n  {copy}\n")
    )
    assert hbm_bytes(parse(text)) == 3 * tile + 2 * whole


def test_a_gather_in_three_fusions_on_the_chip_has_no_traffic_and_its_buffer_is_written_once():
    text = stored("async_gather")
    assert hbm_bytes(parse(text)) == 0
    shard, whole = 2048 * 256 * 2, 2048 * 1024 * 2
    # What a device puts in counts with each step.
    assert hbm_bytes(parse(text.replace("S(1)", ""))) == whole + 3 * shard
