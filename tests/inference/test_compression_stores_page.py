"""The script that writes docs/stores.md, and its page."""

import json
from pathlib import Path

import pytest

from memjax.testing.scripts import load_script

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def page():
    """The script that writes docs/stores.md."""
    return load_script(ROOT / "docs/make_stores.py")


@pytest.fixture
def found(page):
    """The committed measurements."""
    return json.loads(page.DATA.read_text(encoding="utf-8"))


def test_the_committed_page_and_plot_are_those_of_the_measurements(page, found, tmp_path):
    assert page.PAGE.read_text(encoding="utf-8") == page.render(found)
    assert [one["dtype"] for one in found["rows"]] == list(page.DTYPES)
    assert "/" not in found["model"]["name"] + found["text"]["name"]
    page.draw(found, tmp_path / "plot.svg")
    assert b"<svg" in (tmp_path / "plot.svg").read_bytes()


def test_the_smallest_store_that_reaches_the_goal_is_named(page, found):
    for one in found["rows"]:
        one["tokens"]["value"] = 0.5
    assert page.smallest(found) is None
    assert "**No store gives back 99 % of the tokens.**" in page.render(found)
    by_dtype = {one["dtype"]: one for one in found["rows"]}
    by_dtype["bfloat16"]["tokens"]["value"] = 0.99
    assert page.smallest(found) is by_dtype["bfloat16"]
    by_dtype["int4"]["tokens"]["value"] = 0.995
    text = page.render(found)
    assert "at least 99 % of the tokens is int4**" in text
    assert f"{page.bits(by_dtype['int4']['store_bytes'], found):.2f} bits per byte of text" in text
