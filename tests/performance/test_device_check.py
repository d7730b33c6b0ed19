"""The check of an accelerator, on the CPU and in small: its parts, its deadline and its page."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import pytest

from memjax.layers import attend as attention
from memjax.performance import device_check
from memjax.performance.device_check import Unequal, check_device, failed
from memjax.testing import tiny_config
from memjax.testing.scripts import load_script

ROOT = Path(__file__).parents[2]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention by blocks from 256 positions on."""
    monkeypatch.setattr(attention, "LONGEST_WHOLE", 256)


def page(checked: Mapping[str, Any]) -> str:
    """The page of benchmarks with the results of one check."""
    make = load_script(ROOT / "docs" / "make_benchmarks.py")
    found = json.loads((ROOT / "docs" / "benchmarks.json").read_text())
    return make.page(found | {"devices": {checked["device_kind"]: checked}})


@pytest.mark.slow
def test_all_parts_of_a_device_that_works(small: None) -> None:
    written: list[list[str]] = []
    found = check_device(
        tiny_config("unused"), 10, lambda found: written.append([*found["parts"]]), steps=2
    )
    names = ["splash", "attention by blocks", "cross entropy by blocks"]
    names += ["train", "evaluate", "encode", "decode", "resume"]
    assert written == [names[: count + 1] for count in range(len(names))]
    assert failed(found) == []
    parts = json.loads(json.dumps(found))["parts"]
    assert parts["splash"]["skipped"] == "the kernel is of TPUs alone"
    for name in names[1:3]:
        assert 0 <= parts[name]["output"] < 1e-6 and 0 < parts[name]["gradients"] < 1e-6
    for name in names[3:7]:
        assert parts[name]["tokens_per_second"] > 0 and parts[name]["planned_bytes"] > 0
        assert parts[name]["mfu"] is None and parts[name]["peak_bytes"] is None
    resumed = {key: parts["resume"][key] for key in ("steps", "killed_at", "resumed_from")}
    assert resumed == {"steps": 20, "killed_at": 15, "resumed_from": 10}
    assert parts["resume"]["bitwise"] and parts["resume"]["difference"] == 0
    assert "| resume | killed at step 15 of 20, resumed from 10: bitwise the same |" in page(found)


def test_parts_after_the_deadline_are_left_out_and_one_that_fails_ends_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(device_check.time, "monotonic", lambda: now[0])

    def fail(*_: object) -> None:
        now[0] += 61.0
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED:\nout of memory")

    for name in ("splash_attention", "attention_by_blocks"):
        monkeypatch.setattr(device_check, name, fail)
    found = check_device(tiny_config("unused"), 2, lambda _: None)
    assert failed(found) == ["splash", "attention by blocks"]
    assert found["parts"]["splash"] == {
        "error": r"JaxRuntimeError: RESOURCE_EXHAUSTED:\nout of memory",
        "seconds": 61.0,
    }
    left_out = [name for name, part in found["parts"].items() if "skipped" in part]
    assert left_out == [*found["parts"]][2:]
    assert "| decode | left out: 2 minutes were over |" in page(found)
    assert "| splash | failed: JaxRuntimeError" in page(found)


def test_kernels_that_differ_are_an_error(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    attend = attention.attend
    monkeypatch.setattr(attention, "attend", lambda *args, **given: 1.01 * attend(*args, **given))
    with pytest.raises(Unequal, match=r"^attention by blocks: relative difference 0.0"):
        device_check.attention_by_blocks()


def test_numbers_of_an_accelerator_are_on_the_page() -> None:
    speed = {"tokens_per_second": 123456.7, "planned_bytes": 2**31, "seconds": 9.0}
    checked = device_check.platform() | {
        "device_kind": "TPU v5 lite",
        "config": "benchmark-accelerator",
        "hbm_bytes": 2**34,
        "parts": {"train": speed | {"mfu": 0.417, "peak_bytes": 3 * 2**30}},
    }
    said = page(checked)
    assert "### 1 x TPU v5 lite" in said and "16.0 GiB of memory per device" in said
    numbers = "123,457 tokens/s, MFU 41.7 %, 2.00 GiB as compiled, 3.00 GiB at most so far"
    assert f"| train | {numbers} |" in said
    assert "No accelerator was available" not in said
