"""Nearest memories are those of a whole sort of cosines, in any blocks."""

import numpy as np
import pytest

from memjax.checkpoints.store import MemoryStore
from memjax.checkpoints.store_records import EncoderProvenance, StoredDocument
from memjax.inference import neighbours as module
from memjax.inference.neighbours import neighbours
from memjax.models.memory import bank


def store_of(vectors):
    """A store of one document of full chunks of 4 tokens."""
    made = EncoderProvenance(
        *("memory_model", "combined", 1, {}, "0" * 64, "0" * 16, 40, 4),
        {"vectors": vectors.shape[1:]},
    )
    spans = np.zeros((len(vectors), 4), np.int64)
    spans[:, 0], spans[:, 1] = 4 * np.arange(len(vectors)), 4
    store = MemoryStore(made, "float32")
    store.append(StoredDocument("a", 4 * len(vectors), 0), bank(vectors), spans)
    return store


@pytest.mark.parametrize("block", [1, 7 * 50, 2**24])
def test_they_are_those_of_a_sort(block, monkeypatch):
    monkeypatch.setattr(module, "_COSINES", block)
    vectors = np.random.default_rng(0).normal(size=(50, 2, 8)).astype(np.float32)
    found = neighbours(store_of(vectors), 5)
    flat = vectors.reshape(50, 16)
    flat = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    cosines = flat @ flat.T
    np.fill_diagonal(cosines, -2)
    expected = np.argsort(-cosines, axis=1)[:, :5]
    np.testing.assert_array_equal(found.chunks, expected)
    np.testing.assert_allclose(
        found.cosines, np.take_along_axis(cosines, expected, axis=1), rtol=1e-5, atol=1e-6
    )


def test_equal_memories_are_of_cosine_1_and_no_memory_is_its_own():
    vectors = np.ones((3, 1, 4), np.float32)
    vectors[1] = 0
    found = neighbours(store_of(vectors), 2)
    np.testing.assert_array_equal(found.chunks, [[2, 1], [0, 2], [0, 1]])
    np.testing.assert_allclose(found.cosines, [[1, 0], [0, 0], [1, 0]], atol=1e-6)


def test_a_store_of_few_chunks_has_few():
    assert neighbours(store_of(np.ones((1, 1, 4), np.float32)), 5).chunks.shape == (1, 0)
    assert neighbours(store_of(np.ones((3, 1, 4), np.float32)), 5).chunks.shape == (3, 2)
