"""The data of a store's page: tokens without padding, places as steps, and the text beside a
store."""

import base64
import dataclasses
import itertools

import numpy as np
import pytest

import memjax
from memjax.checkpoints.store_records import StoreError
from memjax.data import train_tokenizer
from memjax.experiment.report.store_data import (
    Original,
    Sample,
    find_original,
    give_back,
    page_data,
    read_original,
    recall_sample,
    spelling,
    wrong_tokens,
)
from memjax.inference.neighbours import neighbours
from memjax.testing import WORDS

BOOK = "The memory holds what a chunk holds.\n<|endoftext|>\nAnother text, naïve and short.\n"


@pytest.fixture(scope="module")
def model(made):
    return memjax.load(made, "autoencoder")


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):
    """A folder with a text and its store."""
    folder = tmp_path_factory.mktemp("store")
    (folder / "book.txt").write_text(BOOK, encoding="utf-8")
    model.compress(folder / "book.txt").save(folder / "book.store")
    return folder


@pytest.fixture(scope="module")
def store(files):
    return memjax.open_store(files / "book.store")


def tokens_of(data, name):
    kind = "<u4" if data["wide"] else "<u2"
    return np.frombuffer(base64.b64decode(data["tokens"][name]), kind)


@pytest.mark.parametrize("side", ["right", "left"])
def test_data_hold_every_token_and_place(side, model, files, store):
    original = read_original(model, store, str(files / "book.txt"))
    counts, tokens = store.spans[:, 2], original.tokens
    if side == "left":
        tokens = np.array([np.roll(row, 8 - n) for row, n in zip(tokens, counts, strict=True)])
    given = tokens.copy()
    given[0, 1] = tokens[0, 2]
    sample = Sample(np.array([0, 2]), tokens[[0, 2]])
    some = Original(tokens, np.arange(len(store)) != 1)
    nearest = neighbours(store, 3)
    data = page_data(store, model.tokenizer, side, given, some, sample, nearest)
    flat = [
        tokens[n][:count] if side == "right" else tokens[n][8 - count :]
        for n, count in enumerate(counts)
    ]
    pieces = [*data["pieces"], None]
    spelled = [pieces[i] for i in tokens_of(data, "text")]
    expected = [[spelling(model.tokenizer, i) for i in row.tolist()] for row in flat]
    expected[1] = [None] * int(counts[1])
    assert spelled == list(itertools.chain(*expected))
    assert (tokens_of(data, "given") != tokens_of(data, "text")).sum() == 1 + counts[1]
    assert len(tokens_of(data, "all")) == counts[[0, 2]].sum() and data["sample"] == [0, 2]
    for name, column in (("document", 0), ("token", 1), ("first", 3)):
        np.testing.assert_array_equal(np.cumsum(data[name]), store.spans[:, column])
    np.testing.assert_array_equal(data["bytes"], store.spans[:, 4] - store.spans[:, 3])
    assert data["names"] == ["book.txt#0", "book.txt#1"] and data["nearest"]["top"] == 3
    assert data["memory"] == store.nbytes / len(store)


def test_bytes_of_a_character_are_bytes_and_what_looks_so_is_text():
    tokenizer = train_tokenizer([" ".join(WORDS) * 20], 320)
    tokens = tokenizer.encode("ï", start=False)
    found = [spelling(tokenizer, token) for token in tokens.tolist()]
    assert [bytes(one) for one in found if not isinstance(one, str)] == [b"\xc3", b"\xaf"]
    assert spelling(tokenizer, tokenizer.pad_id) == "<pad>"


def test_the_text_beside_a_store_is_found_if_it_is_that(model, files, store, tmp_path):
    found, note = find_original(model, store, files)
    np.testing.assert_array_equal(found.tokens, model.chunks(files / "book.txt").tokens)
    assert found.there.all() and note.startswith("Compared with book.txt, which lies beside")
    found, note = find_original(model, store, tmp_path)
    assert (
        found is None and note == "The text that was compressed (book.txt) is not beside the store."
    )
    (tmp_path / "book.txt").write_text(BOOK.replace("holds", "keeps"))
    found, note = find_original(model, store, tmp_path)
    assert found is None and "(book.txt) is another than the one compressed" in note
    (tmp_path / "book.txt").write_text(" ")
    found, note = find_original(model, store, tmp_path)
    assert found is None and "(book.txt) cannot be read: " in note


def test_a_text_in_part_is_compared_in_part(model, store, tmp_path):
    text = tmp_path / "book.txt"
    text.write_text(BOOK.replace("short", "quick"), encoding="utf-8")
    original = read_original(model, store, str(text))
    np.testing.assert_array_equal(original.there[store.spans[:, 0] == 0], True)
    assert not original.there.all()
    text.write_text("Of nothing in the store.")
    with pytest.raises(StoreError, match=r"holds none of the texts of the store \(book.txt\)"):
        read_original(model, store, str(text))


def test_what_is_given_back_is_reconstructed_or_recalled(model, made, store, monkeypatch):
    found = give_back(model, store)
    np.testing.assert_array_equal(found.tokens, model.reconstruct_tokens(store))
    assert found.how == "each chunk from its own memory"
    assert recall_sample(model, store) == (None, "")
    reader = memjax.load(made, "combined")
    np.testing.assert_array_equal(give_back(reader, store).tokens, found.tokens)
    both = give_back(dataclasses.replace(reader, autoencoder=""), store)
    assert "by blank_copy, on which stage combined was not trained" in both.how
    with pytest.raises(Exception, match=r"encoder|memories"):
        give_back(memjax.load(made, "causal_control"), store)


def test_wrong_tokens_are_counted():
    one = np.array([[1, 2, 0], [1, 2, 3]])
    np.testing.assert_array_equal(wrong_tokens(one, np.array([[1, 2, 0], [3, 2, 1]])), [0, 2])
