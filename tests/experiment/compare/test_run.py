"""`memjax compare` trains what is missing, meets its budget, and writes its page."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from memjax.cli.main import main
from memjax.config import ConfigError
from memjax.experiment.compare.page import equal_flops, plot, row_of, works
from memjax.experiment.compare.plan import SCALES, fit, names, setting, stored_bits
from memjax.models import build
from memjax.models.peers import PEERS

SMALL = SCALES["small"]


def example(config):
    return jnp.zeros((1, config.chunks, config.model.chunk_length), jnp.int32)


@pytest.mark.quick_cases("memory_model", "mplus", "lstm", "reading")
@pytest.mark.parametrize("name", names())
def test_every_row_meets_the_budget_and_has_a_valid_config(name):
    config, stage = setting(name, SMALL)
    # The reference keeps all tokens.
    assert name == "causal_lm" or stored_bits(config, stage) <= SMALL.bits == 8 * 4 * 128 * 32
    if name in PEERS:
        PEERS[name].check(config, stage, "config.stages.main")
        # A dial that fills the budget is what decides the bits, at the sizes that are trained.
        more = {dial: size + 1 for dial, size in stage.dials.items()}
        larger = dataclasses.replace(stage, dials=more)
        assert not more or stored_bits(config, larger) > SMALL.bits
        jax.eval_shape(build(config, stage).init, jax.random.key(0), example(config))


def test_a_budget_that_is_too_small_is_refused_before_anything_starts():
    config, stage = setting("rmt", SMALL)
    with pytest.raises(ConfigError, match="rmt keeps 4,096 bits of a text, expected at most 100"):
        fit(PEERS["rmt"], config, stage, 100)


def test_unknown_names_list_the_known(capsys, tmp_path):
    assert main(["compare", "--names=rmtt", f"--out={tmp_path / 'new'}"]) == 2
    error = capsys.readouterr().err
    assert "--names" in error
    assert "rmt" in error
    assert not (tmp_path / "new").exists()


def test_the_list_has_a_line_for_each_architecture(capsys):
    assert main(["compare", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(names())


def run(recalled, other, flops=(10, 20)):
    point = {"recalled": recalled, "shuffled": other, "constant": other, "by_distance": {"1": 0.5}}
    return {
        "name": "one",
        "curve": {"8": point},
        "course": [{"step": i, "flops": f, "recalled": i / 10} for i, f in enumerate(flops, 1)],
        "bits": 64,
        "flops": {"write": 1, "read": 2},
        "step_flops": 10,
        "trained_parameters": 1,
        "frozen_parameters": 0,
        "dials": {},
        "cpu_seconds": 1.0,
    }


def test_a_row_works_above_both_controls_by_five_standard_errors():
    assert works([run(0.5, 0.06), run(0.52, 0.07), run(0.51, 0.06)], "8")
    assert not works([run(0.5, 0.06), run(0.07, 0.06), run(0.06, 0.06)], "8")
    assert not works([run(0.5, 0.06), run(0.5, 0.06)], "8")
    row = row_of("one", [run(1.0, 0.06)] * 3, SMALL)
    # Eight values of 4 bits each are recalled of 64 stored bits.
    assert row["bits_per_bit"] == 0.5
    assert row["recalled"] == {"mean": 1.0, "error": 0.0}


def test_equal_flops_are_those_of_the_cheapest_training():
    found = {"one": [run(0.5, 0.06)], "two": [run(0.5, 0.06, (25, 50))]}
    cheap, costly = equal_flops(found)
    assert (cheap["name"], cheap["step"], cheap["share"]["mean"]) == ("one", 2, 0.2)
    assert costly["share"] is None


def test_the_plot_joins_the_rows_that_no_cheaper_row_surpasses():
    costs = {"cheap": (1, 0.2), "best": (100, 0.9), "beaten": (100, 0.5), "dear": (1000, 0.9)}
    rows = [
        {"name": name, "write": cost, "read": 0, "recalled": {"mean": share, "error": 0.0}}
        for name, (cost, share) in costs.items()
    ]
    found = plot(rows, 1, width=300, height=100)
    assert [point["name"] for point in found["front"]] == ["cheap", "best"]
    places = {point["name"]: (point["x"], point["y"]) for point in found["points"]}
    # The axis is logarithmic, from 1 to 10,000.
    assert places["cheap"] == pytest.approx((0, 80))
    assert places["best"] == pytest.approx((150, 10))
    assert places["dear"] == pytest.approx((225, 10))
    labels = [point["label"] for point in found["points"] if point["label"]]
    assert len(set(labels)) == len(labels) == 4


@pytest.mark.slow
def test_a_comparison_resumes_and_writes_its_page(tmp_path, capsys):
    out = tmp_path / "compare"
    command = ["compare", "--names=rmt,icae,no_memory", "--scale=tiny", f"--out={out}"]
    assert main([*command, "--seeds=0"]) == 0
    first = (out / "runs/rmt-0.json").read_bytes()
    assert main([*command, "--seeds=0,1"]) == 0
    assert (out / "runs/rmt-0.json").read_bytes() == first
    page = (out / "compare.html").read_text()
    assert all(f"<td>{name}<" in page for name in ("rmt", "icae", "no_memory"))
    rows = {row["name"]: row for row in json.loads((out / "results.json").read_text())}
    assert rows["rmt"]["seeds"] == 2
    assert rows["icae"]["frozen"] > 0
    assert main(["compare", "--scale=small", "--names=rmt", f"--out={out}"]) == 2
    assert "compare.json" in capsys.readouterr().err
