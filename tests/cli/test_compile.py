"""`memjax compile`: the mesh that is asked for, the table and its exit status. The compiler itself
is tested in tests/performance/aot."""

import json

import pytest

from memjax.cli.arguments import read_config
from memjax.cli.compile import gib, parse_mesh
from memjax.cli.main import main
from memjax.config import Mesh
from memjax.performance.aot.collectives import Traffic
from memjax.performance.aot.compiling import Report
from memjax.performance.aot.roofline import Work, roofline
from memjax.performance.aot.search import Layout
from memjax.sharding.chips import CHIPS

CHIP = CHIPS["v5e"]
WORK = Work(model_flops=1.97e12, hardware_flops=3.94e12, hbm_bytes=4.095e9, ici_bytes=2e6)
FITS = {
    "arguments": 3 * 2**29,
    "temporary": 2**30,
    "peak": CHIP.hbm // 4,
    "model_flops": WORK.model_flops,
    "hardware_flops": WORK.hardware_flops,
    "hbm_moved": 2**31,
    "collectives": {"all-reduce": Traffic(3, 2e6, 5e5)},
    "bound": roofline(WORK, CHIP),
    "seconds": 4.2,
}


@pytest.fixture
def compiled(monkeypatch):
    """What the compiler was called with; `generate` does not fit."""
    calls = []

    def compile_program(config, stage, topology, mesh, program):
        calls.append((stage, topology, mesh, program))
        found = {"problem": "needs 40 GiB of 15.75 GiB"} if program == "generate" else FITS
        fixed = (program, stage, topology, 8, {"data": 4, "fsdp": 2}, 16, 512, 2_500_000, CHIP.hbm)
        return Report(*fixed, **found)

    monkeypatch.setattr("memjax.performance.aot.compiling.compile_program", compile_program)
    return calls


FLAGS = ["compile", "--config=configs/quickstart.py:small", "--topology=v5e-8"]


def test_the_table_says_what_a_step_takes_and_what_bounds_it(compiled, tmp_path, capsys):
    out = tmp_path / "report.json"
    assert main([*FLAGS, "--stage=autoencoder", "--mesh=fsdp=-1", f"--out={out}"]) == 0
    assert compiled == [("autoencoder", "v5e-8", Mesh(data=1, fsdp=-1), "train")]
    said = capsys.readouterr().out
    for text in (
        "train of autoencoder on v5e-8: 8 chips (data 4, fsdp 2)",
        "1.50 GiB",
        "(25%)",
        "1.970e+12",
        "3.940e+12",
        "all-reduce x 3",
        "2.0 MB ICI, 0.5 MB DCN",
        "962 (the chip's ridge: 241)",
        "compute 20.00, hbm 5.00, ici 0.01, dcn 0.00",
        "50.0%, bound by compute",
        "25,600",
        "2.5 M parameters, 16 rows of 32 tokens; compiled in 4 s",
    ):
        assert text in " ".join(said.split()), text
    (report,) = json.loads(out.read_text())
    assert report["peak"] == CHIP.hbm // 4 and report["bound"]["mfu"] == pytest.approx(0.5)


def test_a_program_that_does_not_fit_is_named_and_the_status_is_one(compiled, capsys):
    assert main([*FLAGS, "--program=train,generate"]) == 1
    assert [program for *_, program in compiled] == ["train", "generate"]
    assert {mesh for _, _, mesh, _ in compiled} == {None}
    assert "v5e-8: needs 40 GiB of 15.75 GiB" in capsys.readouterr().out


def test_a_search_ends_with_the_flags_of_the_best_layout(monkeypatch, tmp_path, capsys):
    out, tried = tmp_path / "layouts.json", []
    fixed = "train", "combined", "v5e-8", 8, {"data": 1, "fsdp": 8}, 16, 512, 1, CHIP.hbm

    def search(config, stage, topology, meshes):
        tried.extend(meshes)
        yield Layout(Mesh(1, 8), "none", 1), Report(*fixed, problem="needs 20G; use more chips")
        yield Layout(Mesh(1, 8), "dots_saveable", 2), Report(*fixed, **FITS)

    monkeypatch.setattr("memjax.performance.aot.search.search", search)
    assert main([*FLAGS, "--search", f"--out={out}"]) == 0
    assert tried == [Mesh(1, 8), Mesh(4, 2), Mesh(8, 1)]
    shown = " ".join(capsys.readouterr().out.split())
    assert "data=1,fsdp=8,tensor=1, remat none, microbatches 1: needs 20G" in shown
    assert "microbatches 2: MFU at most 50.0%, bound by compute" in shown
    flags = Layout(Mesh(1, 8), "dots_saveable", 2).flags("combined")
    assert f"memjax train --config=configs/quickstart.py:small {flags}" in shown
    assert [one["flags"] for one in json.loads(out.read_text())][1] == flags
    # What it prints is what training understands.
    pairs = [flag.removeprefix("--config.").split("=", 1) for flag in flags.split()]
    config = read_config("config", "configs/quickstart.py:small", pairs)
    assert config.model.remat == "dots_saveable" and config.mesh == Mesh(1, 8)


def test_a_search_is_of_training_steps(capsys):
    assert main([*FLAGS, "--search", "--program=generate"]) == 2
    assert "--program: generate, expected train" in capsys.readouterr().err


def test_a_mesh_is_a_name_or_its_axes():
    assert parse_mesh(None) is None
    assert parse_mesh("ddp") == Mesh()
    assert parse_mesh("data=2,fsdp=8,tensor=4") == Mesh(2, 8, 4)
    assert parse_mesh("tensor=2") == Mesh(1, 1, 2)


def test_bytes_are_written_in_gib():
    assert gib(3 * 2**29) == "1.50 GiB"
