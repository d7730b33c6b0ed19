"""Texts: held-out, of another corpus, random; and batches of equal size."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from memjax.config import Data
from memjax.data import RowsError, prepare
from memjax.inference import texts
from memjax.inference.texts import TextsError
from memjax.objectives import SpecialIds
from memjax.testing import write_corpus
from memjax.testing.progress import Recorder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    corpus = str(write_corpus(folder / "corpus.jsonl"))
    return (
        folder / "data",
        prepare(
            Data(corpus=corpus, vocab_size=320, sequence_length=32), folder / "data", lambda _: None
        ),
        corpus,
    )


def test_held_out_texts_are_pieces_of_held_out_rows(data):
    folder, prepared, _ = data
    found = texts.held_out(folder, 8, 10**6, prepared.tokenizer)
    rows = np.stack([prepared.validation[i] for i in range(len(prepared.validation))])
    np.testing.assert_array_equal(found, rows.reshape(-1, 8))
    few = texts.held_out(folder, 8, 5, prepared.tokenizer)
    assert few.shape == (5, 8) and (few[0] == found[0]).all()
    longer = texts.held_out(folder, 12, 10**6, prepared.tokenizer, "train")
    np.testing.assert_array_equal(longer[:2].ravel(), prepared.train[0][:24])


@pytest.mark.parametrize("packing", ["first_n", "first_n_left"])
def test_padding_alone_is_no_text_and_the_other_side_is_refused(packing, tmp_path):
    """A text of this model holds tokens; a model is measured on rows padded as in training."""
    corpus = str(write_corpus(tmp_path / "corpus.jsonl", words=5))
    settings = Data(corpus=corpus, vocab_size=320, sequence_length=32, packing=packing)
    prepared = prepare(settings, tmp_path / "data", lambda _: None)
    rows = np.stack([prepared.validation[i] for i in range(len(prepared.validation))])
    chunks = rows.reshape(-1, 8)
    real = (chunks != prepared.tokenizer.pad_id).any(axis=1)
    assert 0 < real.sum() < len(chunks)
    ours = (tmp_path / "data", 8, 10**6, prepared.tokenizer, "validation")
    np.testing.assert_array_equal(texts.held_out(*ours), chunks[real])
    np.testing.assert_array_equal(texts.held_out(*ours, packing), chunks[real])
    other = {"first_n": "per_document_left", "first_n_left": "packed"}[packing]
    with pytest.raises(RowsError, match=f"rows-32: rows padded on the .*data.packing='{other}'"):
        texts.held_out(*ours, other)


def test_another_corpus_is_told_in_the_words_of_the_tokenizer(data):
    _, prepared, corpus = data
    found = texts.of_corpus(corpus, 16, 3, prepared.tokenizer)
    assert found.shape == (3, 16)
    text = prepared.tokenizer.decode(found.ravel())
    first = Path(corpus).read_text().split('"')[3]
    assert first.startswith(text[:30])


def test_random_texts_are_of_content_alone():
    ids = SpecialIds()
    found = texts.random(200, 8, 20, ids)
    assert set(np.unique(found)) == set(range(ids.first_content, 20))
    np.testing.assert_array_equal(found, texts.random(200, 8, 20, ids))


@pytest.mark.parametrize(("count", "size"), [(7, 3), (6, 3), (2, 5)])
def test_batches_are_of_one_size_and_lose_nothing(count, size):
    rows = np.arange(count * 2).reshape(count, 2)
    recorder = Recorder()
    with recorder.active():
        found = list(texts.batches(rows, size, "texts"))
    assert {len(batch) for batch in found} == {min(count, size)}
    assert recorder.totals == {"texts": len(found)}
    both = texts.over_batches(lambda batch: (batch, batch[:, 0] > 3), rows, size, "texts")
    np.testing.assert_array_equal(both[0], rows)
    np.testing.assert_array_equal(both[1], rows[:, 0] > 3)
    assert texts.over_batches(lambda x: x, rows, size, "texts", np.float64).dtype == np.float64


def test_processes_compute_their_shares_and_have_all(monkeypatch):
    rows, parts = np.arange(14.0).reshape(7, 2), []
    for own in (range(3), range(3, 3), range(3, 7)):
        monkeypatch.setattr(texts, "share", lambda count, own=own: own)
        monkeypatch.setattr(texts, "gather", lambda part: parts.append(part) or [rows])
        texts.over_batches(lambda x: 2 * x, rows, 2, "texts")
    assert parts[1] is None and [len(part) for part in (parts[0], parts[2])] == [3, 4]
    monkeypatch.setattr(texts, "gather", lambda part: parts)
    np.testing.assert_array_equal(texts.over_batches(lambda x: 2 * x, rows, 2, "texts"), 2 * rows)


def test_batches_are_rounded_up_to_the_devices_of_a_process(monkeypatch):
    mesh = SimpleNamespace(shape={"data": 4, "fsdp": 1, "tensor": 1})
    monkeypatch.setattr(texts, "local_mesh", lambda: mesh)
    rows = np.arange(7)
    for size, sizes in ((3, [4, 4]), (4, [4, 4]), (100, [8])):
        assert [len(batch) for batch in texts.batches(rows, size, "texts")] == sizes
    np.testing.assert_array_equal(texts.over_batches(lambda x: x, rows, 3, "texts"), rows)


def test_a_batch_is_computed_before_the_last_one_is_fetched():
    asked = []
    results = texts.each_batch(lambda batch: asked.append(batch) or batch, np.arange(6), 2, "texts")
    np.testing.assert_array_equal(next(results), [0, 1])
    assert len(asked) == 2
    assert [len(result) for result in results] == [2, 2]


def test_what_is_not_there_is_named(data, tmp_path):
    folder, prepared, _ = data
    with pytest.raises(RowsError, match="no rows here"):
        texts.held_out(tmp_path, 8, 1, prepared.tokenizer)
    with pytest.raises(TextsError, match="32 tokens at most, and a text of this model has 64"):
        texts.held_out(folder, 64, 1, prepared.tokenizer)
    short = tmp_path / "short.txt"
    short.write_text("a memory")
    with pytest.raises(TextsError, match="less than one text of 64 tokens"):
        texts.of_corpus(str(short), 64, 1, prepared.tokenizer)
