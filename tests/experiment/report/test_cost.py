"""Costs of a memory: the arithmetic by hand, and the table on the page."""

import dataclasses
import html
from pathlib import Path
from typing import Any

import pytest

from memjax.config import Backbone, Config, Model, Stage
from memjax.experiment.evaluate import _memory
from memjax.experiment.report import write_report
from memjax.experiment.report.cost import DATA, Cost, cost_table, memory_costs


def test_costs_are_those_counted_by_hand() -> None:
    found = memory_costs(16, 1, width=128, layers=4, kv_heads=4, head_dim=32)
    assert found == [
        *(Cost(8, 1, 16.0, 1024), Cost(8, 2, 32.0, 1024)),
        *(Cost(16, 1, 8.0, 1024), Cost(16, 2, 16.0, 1024)),
        *(Cost(32, 1, 4.0, 1024), Cost(32, 2, 8.0, 1024)),
    ]
    assert [cost.ratio for cost in found] == [64, 32, 128, 64, 256, 128]


def test_halves_are_whole_numbers_from_one() -> None:
    found = memory_costs(1, 5, width=6, layers=1, kv_heads=1, head_dim=3)
    assert [(cost.chunk_length, cost.vectors) for cost in found] == [
        *((1, 2), (1, 5), (1, 10)),
        *((2, 2), (2, 5), (2, 10)),
    ]
    assert found[3].memory == 6.0 and found[3].ratio == 1.0


def test_the_page_shows_them_where_the_config_can_be_read(make_run: Any) -> None:
    page = html.unescape(Path(write_report(make_run(curves=False))).read_text())
    assert '<th scope="row">32</th><td>8 (128 ×)</td><td>16 (64 ×)</td>' in page
    assert "1,024 (2 × 4 layers × 2 heads × 64)" in page
    assert "1 vector of 256 numbers for 32 tokens" in page

    def change(results: dict[str, Any]) -> None:
        del results["data"]["memory_width"]

    assert "Cost of a memory" not in write_report(make_run(change, curves=False)).read_text()


@pytest.mark.parametrize("value", [None, 0, -1, "16", [], float("nan")])
@pytest.mark.parametrize("key", DATA)
def test_no_table_without_every_number(key: str, value: Any) -> None:
    assert cost_table(dict.fromkeys(DATA, 4) | {key: value}) is None


def test_results_have_the_sizes_of_a_model_that_reads_memories() -> None:
    decoder = Backbone(width=48, layers=3, heads=6, kv_heads=2)
    model = Model(encoder=Backbone(width=32, heads=4), decoder=decoder, memory_vectors=5)

    def found(stage: Stage, decoder: Backbone = decoder) -> dict[str, int]:
        given = dataclasses.replace(model, decoder=decoder)
        return _memory(Config(model=given, stages={"main": stage}, curriculum=("main",)))

    stage = Stage(objectives={"next_token": 1.0})
    assert found(stage) == {
        "memory_vectors": 5,
        "memory_width": 32,
        "decoder_layers": 3,
        "decoder_kv_heads": 2,
        "decoder_head_dim": 8,
    }
    assert found(stage, dataclasses.replace(decoder, kv_heads=0))["decoder_kv_heads"] == 6
    assert not found(stage, dataclasses.replace(decoder, kind="mixer"))
    assert not found(dataclasses.replace(stage, memory=False))
    assert not found(dataclasses.replace(stage, family="causal_lm"))
