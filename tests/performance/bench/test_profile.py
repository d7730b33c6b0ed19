"""What a step's time goes into: moments shared out, kinds told apart, and a real recording."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from memjax.performance.aot.hlo import parse
from memjax.performance.bench.profile import NOTHING, PRODUCTS, Event, aggregate, events, wall_time

PROGRAM = """HloModule jit_step

%fused (p: f32[8,8]) -> f32[8,8] {
  %p = f32[8,8]{1,0} parameter(0)
  %dot.2 = f32[8,8]{1,0} dot(%p, %p), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %exp.1 = f32[8,8]{1,0} exponential(%dot.2)
}

%plain (p.1: f32[8,8]) -> f32[8,8] {
  %p.1 = f32[8,8]{1,0} parameter(0)
  ROOT %tanh.1 = f32[8,8]{1,0} tanh(%p.1)
}

%body (state: f32[8,8]) -> f32[8,8] {
  %state = f32[8,8]{1,0} parameter(0)
  ROOT %dot.1 = f32[8,8]{1,0} dot(%state, %state), lhs_contracting_dims={1}, \
metadata={op_name="jit(step)/mlp/up"}
}

%condition (state.1: f32[8,8]) -> pred[] {
  %state.1 = f32[8,8]{1,0} parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (x: f32[8,8]) -> f32[8,8] {
  %x = f32[8,8]{1,0} parameter(0)
  %library = f32[8,8]{1,0} custom-call(%x), custom_call_target="__onednn$matmul"
  %sort.1 = f32[8,8]{1,0} custom-call(%library), custom_call_target="TopK"
  %loop = f32[8,8]{1,0} while(%sort.1), condition=%condition, body=%body
  %fusion.1 = f32[8,8]{1,0} fusion(%loop), kind=kCustom, calls=%fused
  ROOT %fusion.2 = f32[8,8]{1,0} fusion(%fusion.1), kind=kLoop, calls=%plain
}
"""


def test_every_moment_is_shared_by_what_runs_in_it():
    recorded = [
        Event("a", 0, 10),
        Event("b", 5, 15),
        Event("c", 20, 30),
        Event("c", 24, 26),
        Event("a", 27, 27),
    ]
    assert wall_time(recorded) == {"a": 7.5, "b": 7.5, NOTHING: 5, "c": 10}


def test_products_are_dots_fusions_with_dots_and_those_of_libraries():
    second = 1e9
    recorded = [
        Event("loop", 0, 4 * second),
        Event("dot.1", 0, 1 * second),
        Event("dot.1", 1 * second, 4 * second),
        Event("fusion.1", 4 * second, 6 * second),
        Event("library", 6 * second, 7 * second),
        Event("fusion.2", 7 * second, 8 * second),
        Event("sort.1", 8 * second, 9 * second),
        Event("of_another_program", 9 * second, 90 * second),
        Event("fusion.2", 19 * second, 20 * second),
    ]
    found = aggregate(recorded, parse(PROGRAM), steps=2)
    kinds = {kind.name: (kind.seconds, kind.share, kind.runs) for kind in found.kinds}
    assert kinds == {
        NOTHING: (5.0, 0.5, 0),
        PRODUCTS: (3.5, 0.35, 2),
        "fusion": (1.0, 0.1, 1),
        "custom-call": (0.5, 0.05, 0.5),
    }
    assert list(kinds) == [NOTHING, PRODUCTS, "fusion", "custom-call"]
    assert found.products == 0.35
    longest = found.operations[0]
    assert (longest.name, longest.kind, longest.seconds, longest.source) == (
        "dot.1",
        PRODUCTS,
        2.0,
        "jit(step)/mlp/up",
    )
    assert [one.name for one in found.operations] == [
        "dot.1",
        "fusion.1",
        "fusion.2",
        "library",
        "sort.1",
    ]


def test_an_operation_lasts_until_its_results_are_there():
    def event(name, start, end, **stats):
        return SimpleNamespace(name=name, start_ns=start, end_ns=end, stats=stats.items())

    def plane(*lines):
        return SimpleNamespace(lines=[SimpleNamespace(events=line) for line in lines])

    begun = [
        event("dot.1", 10, 12, hlo_op="dot.1", _p=7),
        event("Execute", 0, 50),
        event("tanh", 13, 14, hlo_op="tanh", _p=8),
    ]
    ended = [event("end: dot.1", 40, 41, _c=7)]
    assert events(SimpleNamespace(planes=[plane(begun), plane(ended)])) == [
        Event("dot.1", 10, 41),
        Event("tanh", 13, 14),
    ]


RECORD = """
import json
import jax
import jax.numpy as jnp
from memjax.performance.bench.profile import profile
layers = lambda x, weights: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]
x, weights = jnp.ones((64, 128)), jnp.ones((5, 128, 128))
compiled = jax.jit(layers).lower(x, weights).compile()
jax.block_until_ready(compiled(x, weights))
found = profile(lambda: compiled(x, weights), compiled.as_text(), steps=3)
kinds = {kind.name: (kind.runs, kind.share, kind.seconds) for kind in found.kinds}
print(json.dumps([found.steps, found.products, kinds]))
"""


@pytest.mark.slow
def test_a_recording_has_every_product_of_every_step():
    # In a process of its own: others may have loaded the TPU compiler.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TPU_")}
    said = subprocess.run(
        [sys.executable, "-c", RECORD],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment,
    ).stdout
    steps, products, kinds = json.loads(said)
    _, share, seconds = zip(*kinds.values(), strict=True)
    assert steps == 3
    assert kinds[PRODUCTS][0] == 5
    assert 0 < products < 1
    assert sum(share) == pytest.approx(1)
    assert sum(seconds) * products == pytest.approx(kinds[PRODUCTS][2])


COMPILE = """
from memjax.performance.aot.topologies import devices
from memjax.performance.bench.profile import profile, tpu_compiler_loaded
assert not tpu_compiler_loaded(), "JAX imports libtpu where it is installed, loads it on demand"
devices("v5e-4")
try:
    profile(lambda: None, "", steps=1)
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_process_with_the_tpu_compiler_is_not_recorded():
    pytest.importorskip("libtpu")
    # As a shell has it: a process that has imported libtpu leaves a variable to those it starts.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TPU_")}
    said = subprocess.run(
        [sys.executable, "-c", COMPILE],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=environment,
    ).stdout
    assert "the TPU compiler is loaded in this process" in said
