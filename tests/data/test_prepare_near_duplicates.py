"""Sketches against the Jaccard index itself, and near-duplicates across the splits of a corpus
written for it."""

import json

import numpy as np
import pytest

from memjax.config import Data
from memjax.data import blocks, is_validation, prepare
from memjax.data.sketches import AGREEING, GRAM, PLACES, near_duplicates, sketch


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Of the sets of runs of 8 tokens, as it is defined."""
    one, two = ({tuple(x[i : i + GRAM].tolist()) for i in range(len(x) - GRAM + 1)} for x in (a, b))
    return len(one & two) / len(one | two)


@pytest.mark.parametrize("length", [40, 400])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
def test_places_agree_as_often_as_the_jaccard_index_says(length, share):
    rng = np.random.default_rng(0)
    exact, estimated = [], []
    for _ in range(150):
        a = rng.integers(0, 500, length)
        b = np.concatenate([rng.integers(500, 1000, int(share * length)), a[int(share * length) :]])
        exact.append(jaccard(a, b))
        estimated.append((sketch([a]) == sketch([b])).mean())
    spread = 3 * np.sqrt(np.mean(exact) * (1 - np.mean(exact)) / (PLACES * 150))
    assert np.mean(estimated) == pytest.approx(np.mean(exact), abs=1.5 * spread)


def test_a_sketch_is_of_the_document_alone():
    rng = np.random.default_rng(1)
    documents = [rng.integers(0, 300, size) for size in (3, 9, 5000, 8, 20_000, 1, 700, 0, 12)]
    together = sketch(documents)
    assert together.shape == (9, PLACES) and together.dtype == np.uint64
    np.testing.assert_array_equal(
        together, np.concatenate([sketch([document]) for document in documents])
    )
    np.testing.assert_array_equal(
        together, sketch([document.astype(np.int32) for document in documents])
    )
    assert len(np.unique(together, axis=0)) == 9
    assert sketch([]).shape == (0, PLACES)
    # Runs in another order are the same set.
    a = np.tile(np.arange(10), 3)
    np.testing.assert_array_equal(sketch([a]), sketch([np.tile(np.arange(10), 7)]))


def test_near_duplicates_are_those_of_all_pairs():
    rng = np.random.default_rng(2)
    theirs = rng.integers(0, 2, (400, PLACES)).astype(np.uint64)
    ours = rng.integers(0, 2, (300, PLACES)).astype(np.uint64)
    sparse = rng.permutation(400)[:12]
    for own in (np.arange(400), sparse):
        expected = ((ours[:, None] == theirs[own][None]).sum(-1) >= AGREEING).any(1)
        assert expected.any()
        found = near_duplicates(ours, np.array_split(theirs[own], 5))
        np.testing.assert_array_equal(found, expected)
    assert not near_duplicates(ours[:0], [theirs]).size
    assert not near_duplicates(ours, []).any()


def on_side(words: list[str], held_out: bool, places: range) -> str:
    """The text with one word changed so that it falls on that side of the split."""
    for place in places:
        for word in ("loss", "gain", "cost", "none"):
            text = " ".join([*words[:place], word, *words[place + 1 :]])
            if is_validation(text, 0.25) == held_out:
                return text
    raise AssertionError


def test_held_out_documents_like_one_to_train_on_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 8000)
    rng = np.random.default_rng(3)
    vocabulary = ["".join(rng.choice(list("abcdefghij"), 5)) for _ in range(300)]
    stories = [rng.choice(vocabulary, 150).tolist() for _ in range(40)]
    # Twelve stories come in two versions that differ in a word, on either side; of twelve more only
    # the first tenth is the same.
    texts = [on_side(words, False, range(100, 150)) for words in stories]
    close = [on_side(words, True, range(100)) for words in stories[:12]]
    far = [
        on_side([*words[:15], *rng.choice(vocabulary, 135).tolist()], True, range(20, 100))
        for words in stories[12:24]
    ]
    texts += [*close, *far, *close[:3]]  # Exact duplicates fall on one side.
    order = rng.permutation(len(texts))
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": texts[i]}) + "\n" for i in order))
    data = Data(corpus=str(corpus), vocab_size=320, sequence_length=32, validation_share=0.25)
    lines = []
    prepared = prepare(data, tmp_path / "data", lines.append, workers=1)
    ids = prepared.tokenizer.encode_batch(texts)
    closest = [max(jaccard(mine, other) for other in ids[:40]) for mine in ids[40:]]
    assert min([*closest[:12], *closest[24:]]) > 0.9 and max(closest[12:24]) < 0.2, (
        "the corpus is what it should be"
    )
    assert prepared.info["near_duplicates"] == {"validation": 15, "of": 27}
    assert any("15 of 27 held-out documents are near-duplicates" in line for line in lines)
    assert prepared.info["blocks"] > 3
