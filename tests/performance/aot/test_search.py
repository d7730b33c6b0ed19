"""The layout that a search finds, and the layouts that it need not compile."""

import dataclasses

import pytest

pytest.importorskip("libtpu")

from memjax.config import Mesh
from memjax.config.choices import REMAT_POLICIES
from memjax.performance.aot import search as searching
from memjax.performance.aot.collectives import Traffic
from memjax.performance.aot.compiling import Report, compile_program, compute_bound
from memjax.performance.aot.roofline import Work, roofline
from memjax.performance.aot.search import Layout, best, search, usual_meshes
from memjax.performance.aot.topologies import CHIPS
from memjax.testing import tiny_config

CONFIG = tiny_config("unused")
STAGE = dataclasses.replace(
    CONFIG.stages["combined"], init_from="", init_part="", trainable=((".*", True),), batch_size=64
)
CONFIG = dataclasses.replace(
    CONFIG, stages={"combined": STAGE}, curriculum=("combined",), controls=()
)
CHIP = CHIPS["v5e"]
MESHES = (Mesh(1, 8), Mesh(4, 2))
BOUNDS = {
    "none": 0.99,
    "dots_saveable": 0.95,
    "dots_with_no_batch_dims_saveable": 0.9,
    "nothing_saveable": 0.75,
}
GIB = {
    "none": 200,
    "dots_saveable": 100,
    "dots_with_no_batch_dims_saveable": 40,
    "nothing_saveable": 8,
}
"""Activations of the whole batch of a chip."""


@pytest.fixture
def compiled(monkeypatch):
    """The layouts that were compiled, by a compiler whose programs take known amounts."""
    calls = []

    def compile_program(config, stage, topology):
        mesh, parts = config.mesh, config.stages[stage].grad_accum_steps
        calls.append((mesh, config.model.remat, parts))
        peak = int(2**30 * (12 / mesh.fsdp + GIB[config.model.remat] / parts))
        fixed = "train", stage, topology, 8, {}, 64, 2048, 1, CHIP.hbm
        if peak > CHIP.hbm:
            return Report(*fixed, problem="out of memory", peak=peak)
        useful = CHIP.flops * BOUNDS[config.model.remat]
        work = Work(useful, CHIP.flops, 1.0, ici_bytes=CHIP.ici_rate * 0.5 * parts)
        return Report(*fixed, peak=peak, bound=roofline(work, CHIP))

    monkeypatch.setattr(searching, "compile_program", compile_program)
    monkeypatch.setattr(
        searching, "compute_bound", lambda config, *args: BOUNDS[config.model.remat]
    )
    return calls


def test_the_fewest_microbatches_that_fit_are_found_for_every_mesh(compiled):
    found = list(search(CONFIG, "combined", "v5e-8", MESHES))
    assert [tuple(layout) for layout, _ in found] == compiled
    # 200 GiB do not fit in the 8 rows of a chip one by one, and no mesh that splits less is tried.
    assert [call[1:] for call in compiled if call[1] == "none"] == [("none", 1)]
    # 100 GiB fit in 8 parts, 40 GiB in 4, with the mesh that splits the parameters.
    assert compiled[1:5] == [
        (MESHES[0], "dots_saveable", 1),
        (MESHES[0], "dots_saveable", 8),
        (MESHES[1], "dots_saveable", 8),
        (MESHES[0], "dots_with_no_batch_dims_saveable", 1),
    ]
    best = max(found, key=lambda one: one[1].bound.mfu if one[1].bound else 0)
    assert best[0] == Layout(MESHES[0], "nothing_saveable", 1)
    assert best[1].bound.mfu == pytest.approx(0.75)


def test_what_its_flops_alone_keep_below_the_best_is_not_compiled(compiled, monkeypatch):
    monkeypatch.setitem(GIB, "none", 2)
    found = list(search(CONFIG, "combined", "v5e-8", MESHES))
    assert [tuple(layout) for layout, _ in found] == [(mesh, "none", 1) for mesh in MESHES]


def test_meshes_split_parameters_over_all_chips_or_fewer():
    assert usual_meshes("v5e-256") == [Mesh(1, 256), Mesh(4, 64), Mesh(16, 16), Mesh(256, 1)]
    assert usual_meshes("2xv5e-8") == [Mesh(2, 8), Mesh(8, 2), Mesh(16, 1)]


def test_a_mesh_whose_chips_cannot_hold_the_state_is_not_tried(compiled, monkeypatch):
    monkeypatch.setattr(searching, "state_bytes", lambda config, *args: 2**35 // config.mesh.fsdp)
    list(search(CONFIG, "combined", "v5e-8", [*MESHES, Mesh(8, 1)]))
    assert {mesh for mesh, *_ in compiled} == {MESHES[0]}


def test_flags_give_a_command_the_layout():
    layout = Layout(Mesh(4, 2), "dots_saveable", 2)
    assert layout.flags("combined") == (
        "--config.mesh.data=4 --config.mesh.fsdp=2 --config.mesh.tensor=1"
        " --config.model.remat=dots_saveable --config.stages.combined.grad_accum_steps=2"
    )
    changed = layout.of(CONFIG, "combined")
    assert changed.mesh == layout.mesh and changed.model.remat == "dots_saveable"
    assert changed.stages["combined"].grad_accum_steps == 2


@pytest.mark.slow
def test_a_policy_is_bound_by_what_it_computes_again():
    layouts = [Layout(MESHES[0], remat, 1) for remat in REMAT_POLICIES]
    bounds = {
        layout.remat: compute_bound(layout.of(CONFIG, "combined"), "combined", "v5e-8")
        for layout in layouts
    }
    assert bounds["nothing_saveable"] < bounds["dots_saveable"] <= bounds["none"] <= 1


@pytest.mark.slow
def test_the_best_of_a_small_step_is_that_of_its_own_compilation(monkeypatch):
    monkeypatch.setattr(searching, "REMAT_POLICIES", ("none", "nothing_saveable"))
    found = list(search(CONFIG, "combined", "v5e-8", [MESHES[0]]))
    layout, report = max(found, key=lambda one: one[1].bound.mfu)
    alone = compile_program(layout.of(CONFIG, "combined"), "combined", "v5e-8")
    assert alone.bound == report.bound and alone.peak == report.peak


def test_of_equal_bounds_the_best_sends_the_fewest_bytes():
    fixed = "train", "combined", "v5e-8", 8, {}, 64, 2048, 1, CHIP.hbm

    def found(mesh, mfu, sent):
        work = Work(CHIP.flops * mfu, CHIP.flops, 1.0, ici_bytes=sent)
        traffic = {"all-reduce": Traffic(1, sent)}
        report = Report(*fixed, bound=roofline(work, CHIP), collectives=traffic)
        return Layout(mesh, "none", 1), report

    whole, split = found(MESHES[0], 0.9201, 5e9), found(MESHES[1], 0.92, 3e9)
    assert best([whole, split]) == split
    assert best([whole, found(MESHES[1], 0.91, 0.0)]) == whole
    assert best([(whole[0], Report(*fixed, problem="out of memory"))]) is None
