"""The numbers and the chart of a store's page."""

import dataclasses

import numpy as np
import pytest

import memjax
from memjax.experiment.report.store_data import GivenBack, Original, Sample
from memjax.experiment.report.store_page import Contents, page_text, write_store_page
from memjax.inference import TrainedModel
from memjax.models import build, example
from memjax.testing import tiny_model


@pytest.fixture(scope="module")
def model(made):
    return memjax.load(made, "autoencoder")


@pytest.fixture(scope="module")
def store(model):
    return model.compress(["A memory holds what the chunk said. " * 60])


def page_of(model, store, given, original=None, sample=None):
    contents = Contents(GivenBack(given, "from few"), original, sample, None, ["<b>"])
    return page_text("<i>.store", 9876, store, model.tokenizer, "right", contents)


def test_shares_are_those_of_tokens_and_chunks(model, store):
    tokens = model.chunks(["A memory holds what the chunk said. " * 60]).tokens
    given, counts = tokens.copy(), store.spans[:, 2]
    given[: len(store) // 2, 0] += 1
    sample = Sample(np.array([0, 1]), tokens[[0, 1]])
    page = page_of(model, store, given, Original(tokens, np.ones(len(store), bool)), sample)
    share, chunks = 1 - (len(store) // 2) / counts.sum(), 1 - len(store) // 2 / len(store)
    assert f"{100 * share:.1f}% of the tokens come back from {len(store)} memories, and" in page
    assert f"{100 * chunks:.1f}% of the chunks without an error" in page
    assert page.count("<polyline") == 2 and "<span>85%</span>" in page
    first, last = page.partition('<polyline class="ours" points="')[2].split('"')[0].split()[::59]
    assert [float(first.split(",")[1]), float(last.split(",")[1])] == pytest.approx(
        [100 * (1 / 8) / 0.15, 0], abs=0.01
    )
    assert "&lt;i&gt;.store" in page and "&lt;b&gt;" in page and "<b>" not in page
    for fact in (f"{len(store)} of 8 tokens", "9,876", "32 bytes: 1 × 16 bfloat16"):
        assert fact in page


def test_a_sample_without_its_text_has_no_line(model, store):
    given, there = np.where(np.arange(8) < store.spans[:, 2:3], 7, 0), np.zeros(len(store), bool)
    there[3] = True
    page = page_of(model, store, given, Original(given, there), Sample(np.array([0]), given[:1]))
    assert page.count("<polyline") == 1 and "from few: 100.0%" in page


def test_without_the_text_the_chart_shows_where_both_agree(model, store):
    given = np.where(np.arange(8) < store.spans[:, 2:3], 7, 0)
    assert "<svg" not in page_of(model, store, given)
    other = given[:1] + np.array([0, 0, 0, 0, 1, 1, 1, 1])
    page = page_of(model, store, given, sample=Sample(np.array([0]), other))
    assert "Share of tokens that are the same among all memories" in page
    assert 'points="0.0,0.00 1000.0,0.00"' not in page and "<span>50%</span>" in page


def test_a_stage_that_recalls_also_recalls_among_all(made, tmp_path, draw, monkeypatch):
    other = memjax.load(made, "combined")
    settings = dataclasses.replace(other.settings, objectives={"blank_recall": 1.0})
    shape = tiny_model(layout="text", chunk_positions=False)
    config = dataclasses.replace(
        other.config, model=shape, stages={"reading": settings}, curriculum=("reading",)
    )
    module = build(config, settings)
    params = draw(module, example(module, config))["params"]
    model = TrainedModel(module, params, config, other.tokenizer, "reading")
    (tmp_path / "a.txt").write_text("A memory holds what the chunk said. " * 6)
    model.compress(tmp_path / "a.txt").save(tmp_path / "a.store")
    monkeypatch.setattr("memjax.experiment.report.store_page.load", lambda _: model)
    page = write_store_page(tmp_path / "a.store", "reading")
    text = page.read_text(encoding="utf-8")
    assert page == tmp_path / "a.html" and text.count("<polyline") == 2
    assert "2 chunks at a time, from their memories alone." in text
    few = dataclasses.replace(config, model=dataclasses.replace(shape, max_memories=2))
    model = dataclasses.replace(model, config=few, module=build(few, settings))
    text = write_store_page(tmp_path / "a.store", "reading").read_text(encoding="utf-8")
    assert text.count("<polyline") == 1 and "were not recalled among all memories: " in text
