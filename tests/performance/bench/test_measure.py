"""What is reported of programs that were timed."""

import dataclasses
import json
import math

import jax
import pytest

from memjax.config import Backbone, ConfigError, Stage
from memjax.performance.bench import BenchCase, measure
from memjax.performance.bench.measure import Comparison, compare
from memjax.performance.bench.programs import Report, flops
from memjax.performance.bench.timing import Ratio, quartiles
from memjax.testing import tiny_config, tiny_model

STACK = Backbone(width=16, layers=1, heads=2, mlp_ratio=2.0)
STAGE = Stage(batch_size=8, objectives={"next_token": 1.0, "copy": 1.0})
CONFIG = tiny_config(
    "unused",
    model=tiny_model(encoder=STACK, decoder=STACK),
    stages={"both": STAGE},
    curriculum=("both",),
    controls=(),
)
OURS = BenchCase("ours", CONFIG, "both")
REPORT = Report("ours", "both", "train", 8, 256, 20_800, 6e9, 1.5, 10**6, (3.0, 1.0, 2.0), None)


@pytest.fixture(scope="module")
def result():
    """The step against its form in two passes."""
    return measure(
        OURS,
        ["train"],
        dataclasses.replace(OURS, label="passes", program="two_passes"),
        steps=3,
        warmup=1,
    )


@pytest.mark.night
def test_a_result_is_json_with_every_number_finite(result):
    told = json.loads(json.dumps(result.to_json()))
    assert told.keys() == {"devices", "reports", "comparisons", "profiles", "memory"}
    assert told["devices"].startswith(f"{jax.device_count()} x ")
    assert [(report["label"], report["program"]) for report in told["reports"]] == [
        ("ours", "train"),
        ("passes", "two_passes"),
    ]
    for report in told["reports"]:
        assert report["model_flops"] == flops(CONFIG, STAGE, report["program"])
        assert (report["rows"], report["tokens"], report["parameters"]) == (8, 256, 20_800)
        assert len(report["seconds"]) == 3 and min(report["seconds"]) > 0
        assert report["spread"] == quartiles(report["seconds"])
        assert report["planned_bytes"] > 0 and report["compile_seconds"] > 0
    (comparison,) = told["comparisons"]
    assert (comparison["ours"], comparison["theirs"], comparison["program"]) == (
        "ours",
        "passes",
        "train",
    )
    assert comparison["allowed"] == pytest.approx(
        flops(CONFIG, STAGE, "two_passes") / flops(CONFIG, STAGE, "train")
    )
    assert comparison["ratio"]["low"] <= comparison["ratio"]["value"] <= comparison["ratio"]["high"]
    assert comparison["reached"] == comparison["ratio"]["value"] / comparison["allowed"]
    assert told["profiles"] == {}


@pytest.mark.slow
def test_memory_is_counted_in_bytes_and_a_cpu_does_not_say_what_of_it_is_in_use(result):
    assert 10**8 < result.memory["resident"] < 10**11
    assert result.memory["device"] is None


def test_rates_are_those_of_the_median_step():
    told = REPORT.to_json()
    assert (told["tokens_per_second"], told["model_flops_per_second"], told["mfu"]) == (
        128.0,
        3e9,
        None,
    )
    # Of the peak of all devices.
    assert dataclasses.replace(REPORT, peak=12e9).to_json()["mfu"] == 0.25


def test_what_flops_allow_is_theirs_over_ours():
    theirs = dataclasses.replace(REPORT, label="theirs", model_flops=9e9, seconds=(6.0, 2.0, 4.0))
    found = compare(REPORT, theirs)
    assert found == Comparison("ours", "theirs", "train", Ratio(2.0, 2.0, 2.0), 1.5)
    assert found.to_json()["reached"] == pytest.approx(4 / 3)


@pytest.mark.slow
def test_alone_there_is_nothing_to_compare_or_to_show():
    found = measure(OURS, ["encode", "decode"], steps=1, warmup=1)
    assert [report.program for report in found.reports] == ["encode", "decode"]
    assert (found.comparisons, found.profiles) == ([], {})
    assert all(math.isfinite(report.to_json()["spread"]["median"]) for report in found.reports)


WRONG = {
    "passes of what has none": (
        {"programs": ["decode"], "against": dataclasses.replace(OURS, program="two_passes")},
        "--program: got decode, expected train, as --against=two_passes is a training step",
    ),
    "a stage that is not there": (
        {"against": dataclasses.replace(OURS, stage="other")},
        "--stage: got 'other', expected a stage of this config: both",
    ),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_be_measured_is_refused_before_anything_is_compiled(changes, message):
    with pytest.raises(ConfigError) as caught:
        measure(
            **({"case": OURS, "programs": ["train"]} | changes),
            log=lambda text: pytest.fail(text),
        )
    assert str(caught.value) == message
