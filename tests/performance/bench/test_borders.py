"""The border of a chunk behind few entries and behind many."""

import json
import re

import pytest

from memjax.config import ConfigError
from memjax.performance.bench import borders
from memjax.performance.bench.borders import Border, Borders, measure_borders
from memjax.testing import tiny_config, tiny_model

CONFIG = tiny_config("unused", model=tiny_model(layout="text", chunk_positions=False), controls=())


def test_attention_to_more_entries_is_no_part_of_the_ratio():
    found = Borders("here", [Border(4, (1.0,), (5.0,), 0.0), Border(64, (3.0,), (8.0,), 0.0)])
    assert found.dearer().value == pytest.approx(6 / 5)
    assert found.dearer(beyond=False).value == pytest.approx(8 / 5)


@pytest.mark.slow
def test_every_round_writes_one_entry_of_each_number(monkeypatch):
    placed = []

    class Writer(borders.Writer):
        def step(self):
            super().step()
            placed.append((int(self.state.context.count[0]), int(self.state.position[0])))
            return float(len(placed))

    monkeypatch.setattr(borders, "Writer", Writer)
    found = measure_borders(CONFIG, CONFIG.curriculum[-1], (2, 16), rows=2, rounds=2)
    # Four steps within the chunk and one that fills it, of each number in turn.
    assert placed == [
        (first + turn + (position == 0), position)
        for turn in range(3)
        for first in (2, 16)
        for position in (4, 5, 6, 7, 0)
    ]
    few, many = found.borders
    # The first round, of steps 1 to 10, is not timed.
    assert (few.token_seconds, few.border_seconds) == ((12.5, 22.5), (15.0, 25.0))
    assert (many.token_seconds, many.border_seconds) == ((17.5, 27.5), (20.0, 30.0))
    made = json.loads(json.dumps(found.to_json()))
    assert made["borders"][1]["border_spread"]["median"] == 25.0
    assert made["dearer"]["value"] == pytest.approx(25 / 20)


def test_what_has_no_cache_that_grows_is_refused():
    slots = tiny_config("unused", model=tiny_model(), controls=())
    with pytest.raises(ConfigError, match=re.escape("config.model.layout: got 'fixed', expected")):
        measure_borders(slots, slots.curriculum[-1], (2,), rounds=1)
