"""The memory store: rounding, slices, eviction, what is on disk, and what is refused.

Shapes: N chunk, K = 2 vectors, E = 4.
"""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from memjax.instruments.quantisation import quantise
from memjax.store import MemoryStore, Origin, StoredDocument, StoreError
from memjax.store.folder import FILES
from memjax.store.rounding import DTYPES, KINDS, rounded, widened

ORIGIN = Origin(
    "autoencoder", "ae", 7, {"encoder": {"width": 4, "mlp_ratio": 2.0}, "compat": []}, "ab" * 32, "0" * 16, 300, 8, (2, 4)
)
FIRST, SECOND = StoredDocument("a.txt#0", 20, 40, 5), StoredDocument("naïve 日本.txt", 8, 16)
SPANS = np.array([[0, 8, 5, 20], [8, 8, 20, 33], [16, 4, 33, 45]])


def vectors(count, seed=0):
    return np.random.default_rng(seed).normal(0, 2, (count, 2, 4)).astype(np.float32)


def filled(dtype="float32"):
    """Three chunks of one document and one of another."""
    store = MemoryStore.create(ORIGIN, dtype)
    assert store.append(FIRST, vectors(3), SPANS) == 0
    assert store.append(SECOND, vectors(1, seed=1), np.array([[0, 8, 0, 16]])) == 1
    return store


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param


def test_what_is_saved_is_loaded_bit_by_bit(dtype, tmp_path):
    store = filled(dtype)
    store.save(tmp_path / "new" / "s")
    again = MemoryStore.load(tmp_path / "new" / "s", expected=ORIGIN)
    assert again.stored.tobytes() == store.stored.tobytes() and again.stored.dtype == DTYPES[dtype]
    np.testing.assert_array_equal(again.memories, store.memories)
    np.testing.assert_array_equal(again.spans, [[0, *SPANS[0]], [0, *SPANS[1]], [0, *SPANS[2]], [1, 0, 8, 0, 16]])
    assert again.documents == (FIRST, SECOND) and again.origin == ORIGIN and again.dtype == dtype
    assert (len(again), again.tokens, again.text_bytes) == (4, 28, 56)
    names = {path.name for path in (tmp_path / "new" / "s").iterdir()}
    assert names == set(FILES) - (set() if dtype == "int8" else {"scales.bin"})
    assert os.listdir(tmp_path / "new") == ["s"]


def test_rounding_is_that_of_the_instrument_and_within_its_step(dtype):
    given = vectors(50) * np.geomspace(1e-3, 1e3, 50, dtype=np.float32)[:, None, None]
    given[3] = 0
    stored, scales = rounded(given, dtype)
    back = widened(stored, scales)
    if dtype == "float32":
        np.testing.assert_array_equal(back, given)
        return
    # XLA divides by a constant as it likes: a scale may differ in its last bit.
    np.testing.assert_allclose(back, quantise(given, KINDS[dtype]), rtol=2e-7 if dtype == "int8" else 0)
    largest = np.abs(given).max(axis=-1, keepdims=True)
    if dtype == "int8":
        assert stored.itemsize == 1 and scales.shape == (50, 2)
        assert (np.abs(back - given) <= largest / 127 / 2 * 1.001).all()
    else:  # Beyond the smallest normal number half a unit in the last place: 8 and 4 bits of mantissa.
        held = (np.abs(given) > 2.0**-6) & (np.abs(given) <= float(max(abs(widened(stored, None).max()), 448)))
        assert (np.abs(back - given) <= np.abs(given) * (2.0**-8 if dtype == "bfloat16" else 2.0**-4))[held].all()
    assert not np.array_equal(back, given)


def test_int8_by_hand():
    stored, scales = rounded(np.array([[[127, -63.6, 0.4, 0], [1, -2, 0.5, 2]]], np.float32), "int8")
    np.testing.assert_array_equal(stored, [[[127, -64, 0, 0], [64, -127, 32, 127]]])
    np.testing.assert_allclose(scales, [[1, 2 / 127]])
    assert rounded(np.full((1, 1, 4), 190 * 2.0**-149, np.float32), "int8")[0].max() <= 127


def test_what_float8_cannot_hold_becomes_its_largest(tmp_path):
    stored, _ = rounded(np.array([[[1e6, -1e6, 448, 1]]], np.float32), "float8_e4m3")
    np.testing.assert_array_equal(stored.astype(np.float32), [[[448, -448, 448, 1]]])


def test_slices_and_eviction_keep_spans_and_documents():
    store = filled("int8")
    whole, spans = store.memories, store.spans.copy()
    part = store[1:4:2]
    np.testing.assert_array_equal(part.memories, whole[1:4:2])
    np.testing.assert_array_equal(part.spans, spans[1:4:2])
    assert np.shares_memory(part.stored, store.stored)
    np.testing.assert_array_equal(store[[3, 0]].spans, spans[[3, 0]])
    np.testing.assert_array_equal(store.read(np.array([2])), whole[2:3])
    np.testing.assert_array_equal(store.of_document(1).memories, whole[3:])
    np.testing.assert_array_equal(store.full_chunks, [0, 1, 3])
    np.testing.assert_array_equal(store[2:].full_chunks, [1])
    assert part.append(0, vectors(1), SPANS[:1]) == 0 and len(store) == 4, "a slice is a store of its own"
    assert store.evict(before=1) == 1
    np.testing.assert_array_equal(store.spans, spans[1:])
    assert store.evict(indices=[0, -1, 0]) == 2
    np.testing.assert_array_equal(store.spans, spans[2:3])
    np.testing.assert_array_equal(store.memories, whole[2:3])
    assert store.documents == (FIRST, SECOND)
    assert store.evict(before=0) == 0
    assert store.evict(before=1) == 1 and len(store) == 0 and store.memories.shape == (0, 2, 4)
    assert store.append(1, vectors(1), np.array([[0, 8, 0, 16]])) == 1 and len(store) == 1


def test_appending_after_loading_and_saving_in_place(dtype, tmp_path):
    filled(dtype).save(tmp_path / "s")
    store = MemoryStore.load(tmp_path / "s")
    assert store.append(StoredDocument("c", 3, 3), vectors(1, seed=2), np.array([[0, 3, 0, 3]])) == 2
    store.save(tmp_path / "s")
    again = MemoryStore.load(tmp_path / "s")
    expected = np.concatenate([vectors(3), vectors(1, seed=1), vectors(1, seed=2)])
    np.testing.assert_array_equal(again.memories, widened(*rounded(expected, dtype)))
    np.testing.assert_array_equal(again.spans[-1], [2, 0, 3, 0, 3])
    np.testing.assert_array_equal(store.memories, again.memories)
    assert os.listdir(tmp_path) == ["s"]
    with pytest.raises(ValueError, match="read-only"):
        store.stored[0] = 0


def test_a_store_without_a_chunk(dtype, tmp_path):
    MemoryStore.create(ORIGIN, dtype).save(tmp_path / "s")
    again = MemoryStore.load(tmp_path / "s")
    assert (len(again), again.documents, again.tokens) == (0, (), 0)
    assert again.append(FIRST, vectors(3), SPANS) == 0


KILL = """
import os, signal, sys
import memjax.store.folder as folder
from memjax.store.store import MemoryStore
die = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
def die_at_header(path, array, write=folder._write):
    if path.name == "store.json":
        write(path, array[:50])
        die()
    return write(path, array)
class Dying:
    def __get__(self, path, owner):
        return lambda target: os.rename(path, target) if str(target).endswith(".old") else die()
points = {
    "data": lambda: setattr(folder, "_write", die),
    "header": lambda: setattr(folder, "_write", die_at_header),
    "put": lambda: setattr(folder, "_put", die),
    "renames": lambda: setattr(folder.Path, "rename", Dying()),
}
for name, patch in points.items():
    child = os.fork()
    if not child:
        store = MemoryStore.load(f"{sys.argv[1]}/{name}")
        store.evict(before=3)
        patch()
        store.save(f"{sys.argv[1]}/{name}")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, name
print(*points)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is not there")
def test_a_killed_save_leaves_the_old_store(tmp_path):
    points = ("data", "header", "put", "renames")
    for name in points:
        filled().save(tmp_path / name)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", KILL, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(points)
    assert not (tmp_path / "renames").exists(), "killed between the two renames"
    filled().save(tmp_path / ".put.old")  # As one that was killed while it deleted the old store leaves it.
    (tmp_path / ".put.old" / "store.json").unlink()
    for name in points:
        store = MemoryStore.load(tmp_path / name)
        np.testing.assert_array_equal(store.memories, filled().memories)
        store.evict(before=3)
        store.save(tmp_path / name)
        assert len(MemoryStore.load(tmp_path / name)) == 1
        assert not (tmp_path / f".{name}.old").exists()


def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
    filled().save(tmp_path / "s")
    monkeypatch.setattr("memjax.store.folder.os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        filled().save(tmp_path / "s")
    assert os.listdir(tmp_path) == ["s"]
    assert len(MemoryStore.load(tmp_path / "s")) == 4


def test_nothing_but_a_store_is_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match=r"mine: is there and no store \(it holds thesis.tex\)"):
        filled().save(tmp_path / "mine")
    with pytest.raises(StoreError, match="file: is there and no store"):
        filled().save(tmp_path / "file")
    filled().save(tmp_path / "s")
    (tmp_path / "s" / "notes").write_text("x")
    with pytest.raises(StoreError, match="it holds notes"):
        filled().save(tmp_path / "s")
    (tmp_path / "empty").mkdir()
    filled().save(tmp_path / "empty")
    assert len(MemoryStore.load(tmp_path / "empty")) == 4


WRONG_APPENDS = {
    "another shape": (
        FIRST,
        np.zeros((1, 2, 5)),
        SPANS[:1],
        r"memories \[1, 2, 5\] and spans \[1, 4\]: this store takes \[n, 2, 4\]",
    ),
    "a span for each": (FIRST, vectors(2), SPANS[:1], r"spans \[1, 4\]"),
    "spans of numbers": (FIRST, vectors(1), SPANS[:1] + 0.5, "whole numbers"),
    "NaN": (FIRST, np.full((1, 2, 4), np.nan), SPANS[:1], "NaN or infinity"),
    "infinity": (FIRST, np.full((1, 2, 4), np.inf), SPANS[:1], "NaN or infinity"),
    "no such document": (5, vectors(1), SPANS[:1], "no document 5; there are 2"),
    "before the first": (-1, vectors(1), SPANS[:1], "no document -1"),
    "a long chunk": (FIRST, vectors(1), [[0, 9, 5, 20]], "longer than 8 tokens"),
    "no tokens": (FIRST, vectors(1), [[0, 0, 5, 20]], "lies outside its document"),
    "tokens beyond": (FIRST, vectors(1), [[16, 5, 5, 20]], "lies outside its document"),
    "bytes beyond": (FIRST, vectors(1), [[0, 8, 5, 46]], "lies outside its document"),
    "bytes before": (FIRST, vectors(1), [[0, 8, 4, 20]], "lies outside its document"),
    "bytes backwards": (FIRST, vectors(1), [[0, 8, 20, 19]], "lies outside its document"),
    "huge": (FIRST, vectors(1), [[2**62, 8, 5, 20]], "lies outside its document"),
    "a name that a terminal obeys": (StoredDocument("\x1b[2J", 1, 1), vectors(1), SPANS[:1], "no name of a document"),
    "no name": (StoredDocument("", 1, 1), vectors(1), SPANS[:1], "no name of a document"),
    "half a character": (StoredDocument("\ud800", 1, 1), vectors(1), SPANS[:1], "no name of a document"),
    "a size below zero": (StoredDocument("x", -1, 1), vectors(1), SPANS[:1], "a size of -1"),
}


@pytest.mark.parametrize(("document", "memories", "spans", "message"), WRONG_APPENDS.values(), ids=WRONG_APPENDS.keys())
def test_what_cannot_be_stored_is_refused_and_changes_nothing(document, memories, spans, message):
    store = filled()
    with pytest.raises(StoreError, match=message):
        store.append(document, memories, np.asarray(spans))
    assert (len(store), len(store.documents)) == (4, 2)


def test_what_is_not_there_is_not_evicted():
    store = filled()
    for wrong in ({}, {"before": 1, "indices": [0]}, {"before": 5}, {"before": -1}, {"indices": [4]}):
        with pytest.raises(StoreError, match="evict"):
            store.evict(**wrong)
    assert len(store) == 4
    with pytest.raises(StoreError, match="dtype='float16'"):
        MemoryStore.create(ORIGIN, "float16")
    with pytest.raises(StoreError, match="no document 2"):
        store.of_document(2)


OTHERS = {
    "tokenizer": ({"tokenizer": "f" * 16}, "tokenizer 0000000000000000, and stage ae has ffffffffffffffff"),
    "parameters": ({"sha256": "cd" * 32}, "sha256 of parameters abababababababab there, cdcdcdcdcdcdcdcd here"),
    "settings": ({"settings": ORIGIN.settings | {"compat": ["x"]}}, r"config.model.compat \[\] there, \['x'\] here"),
    "an absent setting": ({"settings": {}}, "config.model.encoder"),
    "length": ({"chunk_length": 16}, "tokens of a chunk 8 there, 16 here"),
    "shape": ({"shape": (1, 8)}, r"vectors and width \(2, 4\) there, \(1, 8\) here"),
}


@pytest.mark.parametrize(("changes", "message"), OTHERS.values(), ids=OTHERS.keys())
def test_a_store_of_another_encoder_is_refused(changes, message, tmp_path):
    filled().save(tmp_path / "s")
    with pytest.raises(StoreError, match=message) as refused:
        MemoryStore.load(tmp_path / "s", expected=dataclasses.replace(ORIGIN, **changes))
    assert "\n" not in str(refused.value)
    same = dataclasses.replace(ORIGIN, stage="combined", family="memory_model", step=9)
    assert len(MemoryStore.load(tmp_path / "s", expected=same)) == 4, "the same encoder in another stage"


def test_damage_is_found_and_named(tmp_path):
    with pytest.raises(StoreError, match=r"absent/store.json: no such file"):
        MemoryStore.load(tmp_path / "absent")
    folder = tmp_path / "s"
    filled("int8").save(folder)
    for name in FILES[1:]:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-1])
        with pytest.raises(StoreError, match=f"{name}: holds {len(whole) - 1} bytes, where {len(whole)} were written"):
            MemoryStore.load(folder)
        (folder / name).write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        with pytest.raises(StoreError, match=f"{name}: the contents are not those"):
            MemoryStore.load(folder)
        (folder / name).unlink()
        with pytest.raises(StoreError, match=f"{name}: no such file"):
            MemoryStore.load(folder, verify=False)
        os.mkfifo(folder / name)  # Opening it would wait for ever.
        with pytest.raises(StoreError, match=f"{name}: is no file"):
            MemoryStore.load(folder)
        (folder / name).unlink()
        (folder / name).write_bytes(whole)
    memories = (folder / "memories.bin").read_bytes()
    (folder / "memories.bin").write_bytes(bytes([memories[0] ^ 1]) + memories[1:])
    assert len(MemoryStore.load(folder, verify=False)) == 4, "checksums can be left out"


def seal(folder, name, data):
    """Writes a data file with its checksum and size in the header, as someone who means harm would."""
    header = json.loads((folder / "store.json").read_text())
    header["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "store.json").write_text(json.dumps(header))
    (folder / name).write_bytes(data)


def test_contents_that_are_sealed_and_impossible_are_refused(tmp_path):
    folder = tmp_path / "s"
    store = filled("int8")

    def refused(name, data, message):
        store.save(folder)
        seal(folder, name, data)
        with pytest.raises(StoreError, match=message):
            MemoryStore.load(folder)

    spans = store.spans.copy()
    for column, value in ((0, 2), (0, -1), (1, 2**62), (2, 9), (4, 2**53)):
        wrong = spans.copy()
        wrong[1, column] = value
        refused("spans.bin", wrong.tobytes(), "chunk 1 lies outside its document")
    for value in (np.nan, -1, np.inf):
        refused("scales.bin", np.full((4, 2), value, "<f4").tobytes(), "a scale is negative or not finite")
    names = (FIRST.name + SECOND.name).encode()
    refused("names.bin", names[:-1] + b"\xff", "names.bin: a document's name is no UTF-8")
    refused("names.bin", names.replace(b"a", b"\x1b"), "no name of a document")
    refused("names.bin", names + b"x", "names of documents are impossible")
    table = np.array([[20, 40, 5, 7], [8, 16, 0, len(names)]], "<i8")
    for row, column, value in ((0, 3, 0), (0, 3, 10**9), (1, 3, 5), (1, 0, -1), (1, 2, 2**60)):
        wrong = table.copy()
        wrong[row, column] = value
        refused("documents.bin", wrong.tobytes(), "names of documents are impossible")
    store.save(folder)
    seal(folder, "documents.bin", table.tobytes())
    assert MemoryStore.load(folder).documents == (FIRST, SECOND)
