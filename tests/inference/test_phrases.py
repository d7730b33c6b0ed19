"""A phrase is found where it begins, with errors in the text, and across borders of chunks."""

import numpy as np
import pytest

import memjax
from memjax.checkpoints.store_records import StoreError
from memjax.inference.phrases import rank

TEXTS = [
    "A memory holds what the chunk said, and the decoder reads it in place of words.",
    "Until the row ends, tokens pass by; a naïve reader would say: one after another.",
]


@pytest.fixture(scope="module")
def read(made):
    """(tokenizer, store, true tokens of its chunks, their texts)."""
    model = memjax.load(made, "autoencoder")
    tokens, decode = model.chunks(TEXTS).tokens, model.tokenizer.decode
    return model.tokenizer, model.compress(TEXTS), tokens, [decode(row) for row in tokens]


PHRASES = ["the decoder reads it in place", "A memory holds", "NAÏVE\nreader would", "by", "words."]


@pytest.mark.parametrize("phrase", PHRASES)
def test_a_phrase_is_found_where_it_begins(read, phrase):
    tokenizer, store, tokens, texts = read
    plain = phrase.lower().replace("\n", " ")
    document = next(i for i, text in enumerate(TEXTS) if plain in text.lower())
    before = TEXTS[document].lower().index(plain)
    rows = np.flatnonzero(store.spans[:, 0] == document)
    ends = np.cumsum([len(texts[row]) for row in rows])
    expected = int(rows[np.searchsorted(ends, before, side="right")])
    (chunk, overlap), *others = rank(tokenizer, store, tokens, phrase, 10)
    assert (chunk, overlap) == (expected, 1.0)
    assert all(overlap < 1 for _, overlap in others)


def test_a_text_with_errors_is_found_and_says_less(read):
    tokenizer, store, tokens, _ = read
    phrase = "the decoder reads it in place of words"
    (chunk, _), *_ = rank(tokenizer, store, tokens, phrase, 1)
    wrong = tokens.copy()
    wrong[chunk + 1, 3:5] = tokenizer.encode("a")[0]
    (found, overlap), *_ = rank(tokenizer, store, wrong, phrase, 1)
    assert found == chunk and 0.5 < overlap < 1


def test_what_shares_nothing_is_left_out(read):
    tokenizer, store, tokens, _ = read
    assert rank(tokenizer, store, tokens, "zzzz qqqq", 10) == []
    assert rank(tokenizer, store, tokens, "the", 0) == []
    # No phrase spans two documents.
    (_, overlap), *_ = rank(tokenizer, store, tokens, "of words.Until the row", 1)
    assert overlap < 1
    with pytest.raises(StoreError, match="phrase: no text"):
        rank(tokenizer, store, tokens, "\n", 10)


def test_a_phrase_is_found_in_a_text_shorter_than_the_slack(made):
    model = memjax.load(made, "autoencoder")
    store, tokens = model.compress(["by"]), model.chunks(["by"]).tokens
    assert rank(model.tokenizer, store, tokens, "by", 10) == [(0, 1.0)]
    assert rank(model.tokenizer, store, tokens, "b", 10) == [(0, 1.0)]
