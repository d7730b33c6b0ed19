"""The real steps through the real TPU compiler, at toy size."""

import dataclasses
import json

import jax
import pytest

pytest.importorskip("libtpu")

from memjax.cli import main as cli
from memjax.config import ConfigError, Mesh
from memjax.performance.aot.compiling import compile_program
from memjax.sharding.chips import CHIPS
from memjax.testing import tiny_config
from memjax.training.flops import model_flops

CONFIG = tiny_config("unused")
STAGE = dataclasses.replace(
    CONFIG.stages["combined"], init_from="", init_part="", trainable=((".*", True),), batch_size=16
)
CONFIG = dataclasses.replace(
    CONFIG, stages={"combined": STAGE}, curriculum=("combined",), controls=()
)
FSDP = Mesh(data=1, fsdp=-1)


@pytest.fixture(scope="module")
def copies():
    return compile_program(CONFIG, "combined", "v5e-8")


@pytest.mark.slow
def test_what_is_reported_of_a_training_step(copies):
    assert (copies.chips, copies.mesh) == (8, {"data": 8, "fsdp": 1, "tensor": 1})
    assert not copies.problem
    assert (copies.rows, copies.tokens) == (16, 16 * 32)
    assert copies.hbm == CHIPS["v5e"].hbm
    # Parameters and two moments in float32 are whole on every chip; the step number and two rows
    # are the rest.
    assert copies.arguments >= 4 * copies.parameters
    assert copies.arguments < 30 * copies.parameters, "small arrays are filled up to tiles"
    assert copies.peak > 0
    assert copies.model_flops == model_flops(CONFIG, STAGE).total / 8
    assert copies.hardware_flops >= copies.model_flops
    assert 0 < copies.bound.mfu < 1
    assert copies.bound.binds in ("hbm", "ici"), "at this size nothing is bound by arithmetic"


@pytest.mark.slow
def test_copies_exchange_their_gradients_over_ici_alone(copies):
    assert set(copies.collectives) == {"all-reduce"}
    reduced = copies.collectives["all-reduce"]
    gradients = 2 * 4 * copies.parameters * 7 / 8
    assert gradients <= reduced.ici <= 1.05 * gradients
    assert reduced.dcn == 0


@pytest.mark.slow
def test_split_parameters_take_a_share_of_every_chip_and_are_gathered(copies):
    split = compile_program(CONFIG, "combined", "v5e-8", FSDP)
    assert split.mesh == {"data": 1, "fsdp": 8, "tensor": 1}
    assert split.arguments < copies.arguments / 2
    assert "all-gather" in split.collectives


@pytest.mark.slow
def test_between_slices_go_gradients_once_and_nothing_else():
    two = compile_program(
        dataclasses.replace(CONFIG, mesh=Mesh(data=2, fsdp=8)), "combined", "2xv5e-8"
    )
    assert two.chips == 16
    crossing = {kind: traffic.dcn for kind, traffic in two.collectives.items() if traffic.dcn}
    assert set(crossing) == {"all-reduce"}
    assert sum(crossing.values()) < 4 * 4 * two.parameters
    assert sum(traffic.ici for traffic in two.collectives.values()) > 0


@pytest.mark.slow
def test_between_slices_microbatches_exchange_their_gradients_once_too():
    stage = dataclasses.replace(STAGE, batch_size=32, grad_accum_steps=2)
    config = dataclasses.replace(CONFIG, stages={"combined": stage}, mesh=Mesh(data=2, fsdp=8))
    two = compile_program(config, "combined", "2xv5e-8")
    crossing = {kind: traffic.dcn for kind, traffic in two.collectives.items() if traffic.dcn}
    assert set(crossing) == {"all-reduce"}
    # Parameters are split over the 8 chips of a slice; norms and biases are whole on each.
    assert sum(crossing.values()) < 2 * 4 * two.parameters / 8


@pytest.mark.slow
@pytest.mark.parametrize("program", ["evaluate", "generate"])
def test_other_programs(program, copies):
    found = compile_program(CONFIG, "combined", "v5e-8", program=program)
    assert not found.problem
    # Neither has gradients to exchange or moments to hold.
    assert (
        sum(traffic.ici for traffic in found.collectives.values())
        < copies.collectives["all-reduce"].ici / 4
    )
    assert found.arguments < copies.arguments
    if program == "evaluate":
        assert found.model_flops == model_flops(CONFIG, STAGE).forward / 8


@pytest.mark.slow
def test_too_large_is_a_line_that_says_what_to_change():
    stage = dataclasses.replace(STAGE, batch_size=2**23)
    found = compile_program(
        dataclasses.replace(CONFIG, stages={"combined": stage}), "combined", "v5e-8"
    )
    assert found.problem.startswith("out of memory: needs ")
    assert (
        "G of 15.75G HBM per chip; try config.model.remat='nothing_saveable' (now 'none'), or more"
        " microbatches" in found.problem
    )
    assert found.bound is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "other"}, r"--stage: got 'other', expected a stage of this config: combined"),
        ({"topology_name": "v5e-7"}, r"topology: got 'v5e-7', expected one of"),
        (
            {"topology_name": "v5e-32"},
            r"config\.stages\.combined\.batch_size: got 16, expected a multiple of 32",
        ),
    ],
)
def test_what_cannot_be_compiled_is_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        compile_program(CONFIG, **({"name": "combined", "topology_name": "v5e-8"} | changes))


@pytest.mark.slow
def test_no_device_but_the_compiler_was_used(copies):
    assert {device.platform for device in jax.devices()} == {"cpu"}


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_the_report(tmp_path, capsys):
    (tmp_path / "config.py").write_text(
        "import sys\nfrom memjax.config import to_config_dict\nfrom memjax.testing import"
        " tiny_config\n"
        "def get_config():\n    return to_config_dict(tiny_config('unused'))\n"
    )
    out = tmp_path / "report.json"
    flags = [
        f"--config={tmp_path / 'config.py'}",
        "--topology=v5e-8",
        "--stage=autoencoder",
        "--mesh=data=4,fsdp=2",
        f"--out={out}",
    ]
    assert cli.main(["compile", *flags]) == 0
    (report,) = json.loads(out.read_text())
    assert report["mesh"] == {"data": 4, "fsdp": 2, "tensor": 1}
    printed = capsys.readouterr().out
    assert "train of autoencoder on v5e-8: 8 chips" in printed
    assert f"{report['bound']['mfu']:.1%}, bound by {report['bound']['binds']}" in printed


@pytest.mark.parametrize("mesh", ["fsdp2", "data=2;fsdp=4", "model=8"])
def test_a_mesh_that_is_none_is_refused(mesh, tmp_path, capsys):
    assert (
        cli.main(
            ["compile", "--config=configs/quickstart.py", "--topology=v5e-8", f"--mesh={mesh}"]
        )
        == 2
    )
    assert f"--mesh: '{mesh}', expected ddp, fsdp, fsdp_tp" in " ".join(
        capsys.readouterr().err.split()
    )
