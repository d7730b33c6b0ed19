"""How often instructions run: loops whose rounds the compiler notes, and those it does not."""

import jax
import jax.numpy as jnp
import pytest

from memjax.performance.aot.hlo import Array, executed, parse, trips

# A loop as the TPU compiler writes it: peeled, so that its counter starts at a copy of 1, and
# without a note of its rounds.
LOOP = """HloModule jit_f, num_partitions=4

%wrapped_compare (param_0: s32[], param_1: s32[]) -> pred[] {
  %param_0 = s32[]{:T(128)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  ROOT %lt.1 = pred[]{:T(512)} compare(%param_0, %param_1), direction=LT
}

%condition (state: (s32[], f32[8,128])) -> pred[] {
  %state = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) parameter(0)
  %bound = s32[]{:T(128)} constant(12)
  %counter = s32[]{:T(128)} get-tuple-element(%state), index=0
  ROOT %lt.2 = pred[]{:T(512)} fusion(%counter, %bound), kind=kLoop, calls=%wrapped_compare
}

%body (wide.param.2: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %wide.param.2 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) parameter(0)
  %step = s32[]{:T(128)} constant(STEP), metadata={op_name="jit(f)/while/body/add"}
  %at = s32[]{:T(128)} get-tuple-element(%wide.param.2), index=0
  %copy.14 = s32[]{:T(128)S(6)} copy(%at)
  %add.54 = s32[]{:T(128)} add(%copy.14, %step)
  %value = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%wide.param.2), index=1
  %twice = f32[8,128]{1,0:T(8,128)S(1)} add(%value, %value)
  ROOT %tuple.1 = (s32[]{:T(128)}, /*index=1*/f32[8,128]{1,0:T(8,128)S(1)}) tuple(%add.54, %twice)
}

ENTRY %main (p: f32[8,128]) -> f32[8,128] {
  %p = f32[8,128]{1,0:T(8,128)} parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %copy.20 = s32[]{:T(128)} copy(%one)
  %start = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) tuple(%copy.20, %p)
  %while.30 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)S(1)}) while(%start), \
condition=%condition, body=%body
  ROOT %out = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%while.30), index=1
}
"""


def runs(text, name):
    return [run for run in executed(parse(text)) if run.instruction.name == name]


@pytest.mark.parametrize(("step", "rounds"), [(1, 11), (2, 6), (11, 1)])
def test_a_counter_that_goes_up_to_a_constant_says_how_often_a_loop_runs(step, rounds):
    text = LOOP.replace("STEP", str(step))
    (run,) = runs(text, "twice")
    assert (run.times, run.fused) == (rounds, False)
    assert runs(text, "while.30")[0].times == runs(text, "p")[0].times == 1


def test_a_loop_whose_rounds_are_not_said_counts_once_and_says_so():
    text = LOOP.replace("STEP", "1").replace("constant(12)", "parameter(1)")
    assert [run.times for run in runs(text, "twice")] == [1]
    module = parse(text)
    assert trips(module, module.entry, module.entry.instructions["while.30"]) is None


def test_what_the_compiler_notes_counts_more_than_the_counter():
    noted = 'body=%body, backend_config={"known_trip_count":{"n":"7"}}'
    assert runs(LOOP.replace("STEP", "1").replace("body=%body", noted), "twice")[0].times == 7


def test_arrays_have_their_bytes_and_their_memory():
    text = """HloModule m

ENTRY %main (p: bf16[3,5]) -> (pred[7], s4[3]) {
  %p = bf16[3,5]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %s = f32[]{:T(128)S(6)} constant(-1.5e-3)
  %a = f8e4m3fn[2,<=6]{1,0} custom-call(%p, %s), custom_call_target="f(x)"
  ROOT %t = (pred[7]{0}, /*index=1*/s4[3]{0:T(256)S(1)}, token[]) tuple(%a, %a, %a)
}
"""
    module = parse(text)
    arrays = {name: instruction.arrays for name, instruction in module.entry.instructions.items()}
    assert arrays == {
        "p": (Array(30, True),),
        "s": (Array(4, True),),
        "a": (Array(12, False),),
        "t": (Array(7, False), Array(2, True), Array(0, False)),
    }
    assert module.partitions == 1
    assert module.entry.root.operands == ("a", "a", "a")
    assert module.entry.instructions["a"].attribute(r'custom_call_target="([^"]*)"') == "f(x)"


def test_nested_loops_of_a_real_program_multiply():
    def inner(c, _):
        return jnp.sin(c) @ c, None

    def outer(c, _):
        return jax.lax.scan(inner, c, length=3)[0], None

    step = jax.jit(lambda x: jax.lax.scan(outer, x, length=5)[0])
    text = step.lower(jax.ShapeDtypeStruct((64, 64), jnp.float32)).compile().as_text()
    products = [
        run for run in executed(parse(text)) if run.instruction.opcode in ("dot", "custom-call")
    ]
    assert sum(run.times for run in products) == 15


@pytest.mark.parametrize(
    "text", ["", "HloModule m", "%f (a: f32[]) -> f32[] {\n  ROOT %a = f32[] parameter(0)\n}"]
)
def test_a_text_that_is_no_program_is_refused(text):
    with pytest.raises(ValueError, match="no ENTRY"):
        parse(text)
