"""The script that writes docs/elastic.md: its runs are understood, and its page shows them."""

import re
from pathlib import Path

import numpy as np
import pytest

from memjax.testing.scripts import load_script

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def script():
    return load_script(ROOT / "docs/make_elastic.py")


def a_run(script, one, better=0.0):
    numbers = {
        script.name_of(*point): {
            "reconstructed": 0.9 + better,
            "reconstructed_exact": 0.5,
            "recalled": 0.8 + better,
            "recalled_exact": 0.4,
            "nats": 4.0 - better,
        }
        for point in one.points
    }
    return {
        "commit": "abc1234",
        "date": "2026-01-02",
        "load": 0.2,
        "processor": "a processor",
        "cores": 2,
        "versions": {"Python": "3.11"},
        "command": ["memjax", "train"],
        "steps": one.steps(),
        "cpu_seconds": 200.0,
        "numbers": numbers,
    }


def test_every_run_is_understood(script):
    runs = script.every_run()
    assert len({one.name for one in runs}) == len(runs) == len(script.POINTS) + 1
    script.check(runs)
    script.check(runs, trial=2)


def test_the_run_for_all_points_has_the_steps_of_all_others_together(script):
    *alone, elastic = script.every_run()
    for stage in script.STEPS:
        assert elastic.steps()[stage] == sum(one.steps()[stage] for one in alone)
    assert (elastic.vectors, elastic.length) == (4, 32)


def test_the_page_shows_what_is_measured(script, tmp_path):
    assert "Nothing is measured yet" in script.render({})
    *alone, elastic = script.every_run()
    found = {alone[0].name: a_run(script, alone[0])}
    page = script.render(found)
    assert "| 1 | 16 | 8 | 90.0 | – | – | 80.0 | – | – | 4.000 | – | – |" in page
    assert "6 runs are not measured yet" in page and "which misses it" not in page
    found |= {one.name: a_run(script, one) for one in alone}
    found[elastic.name] = a_run(script, elastic, better=-0.03)
    page = script.render(found)
    assert "| 90.0 | 87.0 | -3.0 |" in page and "| 4.000 | 4.030 | +0.030 |" in page
    assert "is at most 3.0 points below, which misses it" in page
    found[elastic.name] = a_run(script, elastic, better=0.01)
    page = script.render(found)
    assert "better at every size, by at least 1.0 points" in page
    assert "lower at every size, by at least 0.010 nats" in page
    script.write_page(found, tmp_path / "page.md", tmp_path / "plot.svg")
    assert re.search("<svg", (tmp_path / "plot.svg").read_text(encoding="utf-8"))


def test_a_text_is_the_same_in_chunks_of_every_length(script):
    text = np.arange(1, 65).reshape(2, 32)
    for length in (4, 8):
        chunks = script.elastic_measure.cut(text, 4, length, 8)
        assert chunks.shape == (64 // (4 * length), 4, 8)
        assert np.array_equal(chunks[:, :, :length].ravel(), text.ravel())
        assert not chunks[:, :, length:].any()
