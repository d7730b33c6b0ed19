"""The script that writes docs/efficiency.md, and its page."""

from pathlib import Path

import pytest

from memjax.performance.bench.borders import Border, Borders
from memjax.performance.bench.efficiency import Point, Side
from memjax.testing.scripts import load_script

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def page():
    """The script that writes docs/efficiency.md."""
    return load_script(ROOT / "docs/make_efficiency.py")


def a_run(page, context, full_seconds, smaller=51):
    """As the script writes it down, with made-up numbers: memories take a millisecond a token, and
    full context is not timed without a number."""
    own = (0.1,), False, (1e-3,) * 3, (5e-3,) * 3, 2**19
    memory = Side(10**6, 2 * 10**5, 2**20, 5 * 2**20, 1e7, *own)
    timed = ((3.0,), True, (full_seconds,) * 3) if full_seconds else ((), False, ())
    full = Side(10**6, 0, smaller * 2**20, (smaller + 4) * 2**20, 3e7, *timed)
    return {
        "command": page.shown(context),
        "commit": "abc1234",
        "date": "2026-01-02",
        "load": 0.2,
        "processor": "a processor",
        "versions": {"Python": "3.11"},
        "devices": "1 x cpu with 2 cores",
        "point": Point(context, 1, memory, full).to_json(),
    }


def pages(page, *runs, **more):
    """The page of runs by context, and of others by name."""
    by_length = {str(run["point"]["context"]): run for run in runs}
    return page.render(page.current(by_length | more))


def test_the_page_says_whether_the_goal_is_met(page):
    four = a_run(page, 16384, 9e-3)
    four["point"]["rows"], four["command"] = 4, page.shown(page.MORE_ROWS)
    borders = a_run(page, 1024, 1.0) | {"command": page.shown(page.BORDERS)}
    seconds = ((64, 1e-3, 4e-3), (16384, 3e-3, 8e-3))
    timed = [Border(n, (step,) * 3, (border,) * 3, 0.5) for n, step, border in seconds]
    borders["borders"] = Borders("here", timed).to_json()
    met = pages(
        page,
        a_run(page, 1024, 2e-3),
        a_run(page, 16384, 4e-3),
        a_run(page, 131072, None),
        **{page.MORE_ROWS: four, page.BORDERS: borders},
    )
    assert "at least 50 times smaller at 16,384 tokens, entries held:\n  51.00 times, met" in met
    assert "at least 3.7 times\n  as many tokens per second: 4.00 times, met (95 % int" in met
    assert "4 texts at 16,384 tokens of context, at least 8.0 times" in met
    assert "at most 2 times the entries held:\n  1.50 times, met" in met
    assert "beyond attention over the entries: 1.50 times, met" in met
    assert "| 16,384 | 3.0 | 8.0 | 0.50 |" in met
    assert "| 16,384 | memories | 0.1 | 1.0 (1.0 to 1.0) | 1000.0 | 5.0 | 1.0 | 0.5 | 10.0 |" in met
    assert "|  | full context | 3* | 4.0 (4.0 to 4.0) | 250.0 |  | 51.0 |  | 30.0 |" in met
    assert "| 16,384 | 51.0 | 4.00 | 4.00 to 4.00 | 3.00 | 11.00 | 30.0 |" in met
    assert "|  | full context | not measured | not measured |  |  | 51.0 |  | 30.0 |" in met
    assert "| 131,072 | 51.0 | not measured |  | 3.00 | 11.00 |  |" in met
    assert "which is measured up to 16k tokens." in met
    assert "at commit abc1234." in met and "was 0.2 to 0.2." in met
    missed = pages(page, a_run(page, 16384, 3e-3, smaller=49))
    assert "49.00 times, **missed**" in missed and "3.00 times, **missed**" in missed
    # More than arithmetic and bytes explain is said to be the program's.
    assert "does more than it must" not in met and "does more than it must" in pages(
        page, a_run(page, 16384, 14e-3)
    )
    assert "## The goal" not in pages(page, a_run(page, 1024, 2e-3))


def test_what_another_command_measured_counts_as_missing(page):
    old = a_run(page, 2048, 2e-3) | {"command": "memjax bench"}
    assert list(page.current({"2048": old, "1024": a_run(page, 1024, 2e-3)})) == ["1024"]


def test_the_plot_is_the_same_every_time(page, tmp_path):
    seconds = {context: context / 1e6 if context < 2**17 else None for context in page.CONTEXTS}
    points = [a_run(page, context, full)["point"] for context, full in seconds.items()]
    for name in ("one", "two"):
        page.draw(points, tmp_path / f"{name}.svg")
    drawn = (tmp_path / "one.svg").read_bytes()
    assert drawn == (tmp_path / "two.svg").read_bytes() and drawn.count(b'<g id="axes_') == 4
    assert page.short(2**20) == "1M" and page.short(2**11) == "2k"
