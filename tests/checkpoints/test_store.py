"""The memory store: rounding, selections, the file, and refused contents.

Shapes: N chunk, K = 2 vectors, E = 4.
"""

import dataclasses
import os
import resource
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import save_file

from memjax.checkpoints import store as store_module
from memjax.checkpoints import store_file
from memjax.checkpoints.rounding import DTYPES, SCALES, rounded, stored_width, widened
from memjax.checkpoints.store import MemoryStore, open_store
from memjax.checkpoints.store_records import StoredDocument, StoreError
from memjax.evaluation.instruments.quantisation import quantise
from memjax.evaluation.instruments.rounding_loss import KINDS
from memjax.models.memory import Memories, bank
from memjax.testing.stores import ENCODER, FIRST, SECOND, SPANS, filled, vectors


def same(ours, theirs):
    assert (ours.count, ours.kind) == (theirs.count, theirs.kind)
    assert ours.leaves.keys() == theirs.leaves.keys()
    for name, leaf in ours.leaves.items():
        np.testing.assert_array_equal(leaf, theirs.leaves[name])


@pytest.fixture(params=DTYPES)
def dtype(request):
    return request.param


def test_what_is_saved_is_opened_bit_by_bit(dtype, tmp_path):
    store, path = filled(dtype), tmp_path / "new" / "s"
    store.save(path)
    again = open_store(path, expected=ENCODER)
    names = ("vectors", "vectors.scale") if dtype in SCALES else ("vectors",)
    assert tuple(again.stored) == names
    for name in names:
        assert again.stored[name].tobytes() == store.stored[name].tobytes()
    assert again.stored["vectors"].dtype == DTYPES[dtype]
    same(again.memories, store.memories)
    assert again.memories.count == 4 and again.memories.kind == "bank"
    np.testing.assert_array_equal(
        again.spans, [[0, *SPANS[0]], [0, *SPANS[1]], [0, *SPANS[2]], [1, 0, 8, 0, 16]]
    )
    assert again.documents == [FIRST, SECOND] and again.provenance == ENCODER
    assert (again.dtype, len(again), again.tokens, again.text_bytes) == (dtype, 4, 28, 56)
    scale = SCALES[dtype].itemsize if dtype in SCALES else 0
    bytes_each = stored_width(4, dtype) * DTYPES[dtype].itemsize + scale
    assert again.nbytes == store.nbytes == 4 * 2 * bytes_each
    assert os.listdir(tmp_path / "new") == ["s"]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_equal_stores_are_equal_files(dtype, tmp_path):
    for name in "abcdefgh":  # Safetensors orders metadata at random.
        filled(dtype).save(tmp_path / name)
    assert len({(tmp_path / name).read_bytes() for name in "abcdefgh"}) == 1


def test_a_store_that_a_link_leads_to_is_replaced_while_it_is_read(tmp_path):
    path, link = tmp_path / "store", tmp_path / "link"
    filled().save(path)
    link.symlink_to("store")
    opened = open_store(link)
    opened[[3]].save(link)
    assert link.is_symlink() and len(open_store(path)) == 1
    same(opened.memories, filled().memories)


def test_a_full_disk_leaves_the_store_that_is_there(tmp_path):
    path, limit = tmp_path / "store", resource.getrlimit(resource.RLIMIT_FSIZE)
    filled().save(path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limit[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: '{path}'"):
            filled("bfloat16").save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    same(open_store(path).memories, filled().memories)
    assert os.listdir(tmp_path) == ["store"]


def test_a_few_chunks_are_read_without_the_others(tmp_path):
    count = 4096
    encoder = dataclasses.replace(ENCODER, leaves={"vectors": (256, 4)})
    store = MemoryStore(encoder, "float32")
    drawn = np.random.default_rng(0).normal(size=(count, 256, 4)).astype(np.float32)
    first = np.arange(count)[:, None] * 8
    spans = np.concatenate([first, np.full_like(first, 8), first, first + 8], axis=1)
    store.append(StoredDocument("a", 8 * count, 8 * count), bank(drawn), spans)
    store.save(tmp_path / "s")
    tracemalloc.start()
    try:
        opened = open_store(tmp_path / "s")
        read = opened.read([7, count - 1, 7]).leaves["vectors"]
        part = opened[5:9].memories.leaves["vectors"]
        assert tracemalloc.get_traced_memory()[1] < drawn.nbytes / 10
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(read, drawn[[7, count - 1, 7]])
    np.testing.assert_array_equal(part, drawn[5:9])


def test_memories_of_other_kinds_have_a_row_per_document(dtype, monkeypatch, tmp_path):
    leaves = {"state": (3, 4), "norm": (5,)}
    store = MemoryStore(dataclasses.replace(ENCODER, leaves=leaves, kind="chain"), dtype)
    drawn = np.random.default_rng(0)
    rows = [
        {name: drawn.normal(size=(1, *shape)) for name, shape in leaves.items()} for _ in range(2)
    ]
    assert store.append(FIRST, Memories(rows[0], 3, "chain"), SPANS) == 0
    assert store.append(SECOND, Memories(rows[1], 1, "chain"), np.array([[0, 8, 0, 16]])) == 1
    store.save(tmp_path / "s")
    again = open_store(tmp_path / "s")
    same(again.memories, store.memories)
    assert (again.memories.count, len(again)) == (4, 4)
    for number, row in enumerate(rows):
        read = again.read([number])
        assert (read.count, read.kind) == ((3, 1)[number], "chain")
        for name in leaves:
            expected = widened(*rounded(row[name].astype(np.float32), dtype), leaves[name][-1])
            np.testing.assert_array_equal(read.leaves[name], expected)
    with pytest.raises(StoreError, match="Append whole documents"):
        store.append(0, Memories(rows[0], 1, "chain"), SPANS[:1])
    with pytest.raises(StoreError, match=r"append: a bank of .*expected a chain of"):
        store.append(FIRST, bank(vectors(3)), SPANS)
    monkeypatch.setattr(store_module, "CHUNKS_LIMIT", 6)
    with pytest.raises(StoreError, match="more chunks than 6"):
        store.append(FIRST, Memories(rows[0], 3, "chain"), SPANS)
    with pytest.raises(StoreError, match="more chunks than 6"):
        store.extend(again)
    assert (len(store), len(store.documents)) == (4, 2)


def test_stores_of_one_encoder_are_joined(dtype, tmp_path):
    store, other = filled(dtype), filled(dtype)[1:]
    other.save(tmp_path / "s")
    store.extend(open_store(tmp_path / "s"))
    assert (len(store), store.documents) == (7, [FIRST, SECOND, FIRST, SECOND])
    np.testing.assert_array_equal(store.spans[:, 0], [0, 0, 0, 1, 2, 2, 3])
    np.testing.assert_array_equal(store.spans[4:, 1:], other.spans[:, 1:])
    same(store[4:].memories, other.memories)
    store.save(tmp_path / "s")
    same(open_store(tmp_path / "s").memories, store.memories)
    others = dataclasses.replace(ENCODER, sha256="cd" * 32)
    with pytest.raises(StoreError, match="extend: made by the encoder"):
        store.extend(MemoryStore(others, dtype))
    for another in set(DTYPES) - {dtype}:
        with pytest.raises(StoreError, match=f"extend: a store of {another}, expected {dtype}"):
            store.extend(filled(another))
    assert len(store) == 7


def test_rounding_is_that_of_the_instrument_and_within_its_step(dtype):
    given = vectors(50) * np.geomspace(1e-3, 1e3, 50, dtype=np.float32)[:, None, None]
    given[3] = 0
    stored, scales = rounded(given, dtype)
    back = widened(stored, scales)
    if dtype == "float32":
        np.testing.assert_array_equal(back, given)
        return
    # XLA divides by a constant as it likes: a scale may differ in its last bit.
    np.testing.assert_allclose(
        back, quantise(given, KINDS[dtype]), rtol=2e-7 if dtype in SCALES else 0
    )
    largest = np.abs(given).max(axis=-1, keepdims=True)
    if dtype == "int4":
        assert stored.shape == (50, 2, 2) and scales.shape == (50, 2)
        square = ((back - given) ** 2).sum(axis=-1) / np.maximum((given**2).sum(axis=-1), 1e-30)
        assert square.max() < 0.02 and square.mean() < 0.005
    elif dtype == "int8":
        assert stored.itemsize == 1 and scales.shape == (50, 2)
        assert (np.abs(back - given) <= largest / 127 / 2 * 1.001).all()
    else:  # Half a unit in the last place of a mantissa of 8 or 4 bits, where numbers are normal.
        held = (np.abs(given) > 2.0**-6) & (
            np.abs(given) <= float(max(abs(widened(stored, None).max()), 448))
        )
        assert (
            np.abs(back - given) <= np.abs(given) * (2.0**-8 if dtype == "bfloat16" else 2.0**-4)
        )[held].all()
    assert not np.array_equal(back, given)


def test_int8_by_hand():
    stored, scales = rounded(
        np.array([[[127, -63.6, 0.4, 0], [1, -2, 0.5, 2]]], np.float32), "int8"
    )
    np.testing.assert_array_equal(stored, [[[127, -64, 0, 0], [64, -127, 32, 127]]])
    np.testing.assert_allclose(scales, [[1, 2 / 127]])
    assert rounded(np.full((1, 1, 4), 190 * 2.0**-149, np.float32), "int8")[0].max() <= 127


def test_what_float8_cannot_hold_becomes_its_largest(tmp_path):
    stored, _ = rounded(np.array([[[1e6, -1e6, 448, 1]]], np.float32), "float8_e4m3")
    np.testing.assert_array_equal(stored.astype(np.float32), [[[448, -448, 448, 1]]])


def test_selections_keep_spans_and_documents():
    store = filled("int8")
    whole, spans = store.memories.leaves["vectors"], store.spans.copy()
    part = store[1:4:2]
    np.testing.assert_array_equal(part.memories.leaves["vectors"], whole[1:4:2])
    np.testing.assert_array_equal(part.spans, spans[1:4:2])
    assert np.shares_memory(part.stored["vectors"], store.stored["vectors"])
    np.testing.assert_array_equal(store[[3, 0]].spans, spans[[3, 0]])
    np.testing.assert_array_equal(store.read([2]).leaves["vectors"], whole[2:3])
    np.testing.assert_array_equal(store.of_document(1).memories.leaves["vectors"], whole[3:])
    np.testing.assert_array_equal(store.full_chunks, [0, 1, 3])
    np.testing.assert_array_equal(store[2:].full_chunks, [1])
    assert part.append(0, bank(vectors(1)), SPANS[:1]) == 0 and len(store) == 4, (
        "a selection is a store of its own"
    )
    assert part.documents == store.documents == [FIRST, SECOND]
    none = store[4:]
    assert len(none) == 0 and none.memories.leaves["vectors"].shape == (0, 2, 4)
    assert none.append(1, bank(vectors(1)), np.array([[0, 8, 0, 16]])) == 1 and len(none) == 1
    with pytest.raises(IndexError):
        store[[4]]
    with pytest.raises(StoreError, match="dtype=float16: expected one of float32"):
        MemoryStore(ENCODER, "float16")
    with pytest.raises(StoreError, match="document 2: expected a number from 0 to 1"):
        store.of_document(2)
    with pytest.raises(StoreError, match="document 0: expected none here"):
        MemoryStore(ENCODER).of_document(0)


def test_chunks_are_selected_as_numpy_selects_rows():
    store = filled("int8")
    whole = store.memories.leaves["vectors"]
    mask = [True, False, False, True]
    for index in (mask, np.array(mask), (0, 3), range(0, 4, 3), np.array([0, -1], np.int8)):
        np.testing.assert_array_equal(store[index].spans, store.spans[[0, 3]])
        same(store[index].memories, store.read(index))
        np.testing.assert_array_equal(store.read(index).leaves["vectors"], whole[[0, 3]])
    for one in (store[3].memories, store.read(3)):
        same(one, bank(whole[3:]))
    assert len(store[[]]) == store.read([]).count == 0
    for index in ([0.6], [True, False], [4]):
        for select in (store.__getitem__, store.read):
            with pytest.raises(IndexError):
                select(index)


def test_appending_after_opening_and_saving_in_place(dtype, tmp_path):
    filled(dtype).save(tmp_path / "s")
    store = open_store(tmp_path / "s")
    third = bank(vectors(1, seed=2))
    assert store.append(StoredDocument("c", 3, 3), third, np.array([[0, 3, 0, 3]])) == 2
    store.save(tmp_path / "s")
    again = open_store(tmp_path / "s")
    expected = np.concatenate([vectors(3), vectors(1, seed=1), vectors(1, seed=2)])
    same(again.memories, bank(widened(*rounded(expected, dtype))))
    np.testing.assert_array_equal(again.spans[-1], [2, 0, 3, 0, 3])
    same(store.memories, again.memories)
    assert os.listdir(tmp_path) == ["s"]
    with pytest.raises(ValueError, match="read-only"):
        store.stored["vectors"][0] = 0


def test_a_store_without_a_chunk(dtype, tmp_path):
    MemoryStore(ENCODER, dtype).save(tmp_path / "s")
    again = open_store(tmp_path / "s")
    assert (len(again), again.documents, again.tokens) == (0, [], 0)
    assert again.append(FIRST, bank(vectors(3)), SPANS) == 0


KILL = """
import os, signal, sys
import memjax.checkpoints.store as store
import memjax.checkpoints.store_file as file
die = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
def die_midway(path, tensors, metadata):
    path.write_bytes(b"half")
    die()
points = {
    "data": lambda: setattr(file, "save_tensors", die_midway),
    "rename": lambda: setattr(store.Path, "replace", die),
}
for name, patch in points.items():
    child = os.fork()
    if not child:
        kept = store.open_store(f"{sys.argv[1]}/{name}")[3:]
        patch()
        kept.save(f"{sys.argv[1]}/{name}")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL, name
print(*points)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="os.fork is not there")
def test_a_killed_save_leaves_the_old_store(tmp_path):
    points = ("data", "rename")
    for name in points:
        filled().save(tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILL, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(points)
    for name in points:
        store = open_store(tmp_path / name)
        same(store.memories, filled().memories)
        store[3:].save(tmp_path / name)
        assert len(open_store(tmp_path / name)) == 1


def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
    filled().save(tmp_path / "s")
    monkeypatch.setattr(
        "memjax.files.atomic.os.fsync",
        lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")),
    )
    with pytest.raises(OSError, match="No space"):
        filled().save(tmp_path / "s")
    assert os.listdir(tmp_path) == ["s"]
    assert len(open_store(tmp_path / "s")) == 4


def test_nothing_but_a_store_is_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "thesis.tex").write_text("x" * 100)
    with pytest.raises(StoreError, match="folder: not a file, expected a store"):
        filled().save(tmp_path / "folder")
    with pytest.raises(StoreError, match=r"thesis.tex: .*expected a store"):
        filled().save(tmp_path / "thesis.tex")
    save_file({"x": np.zeros(3)}, tmp_path / "weights.safetensors")
    with pytest.raises(StoreError, match="metadata without format, dtype and encoder"):
        filled().save(tmp_path / "weights.safetensors")
    filled().save(tmp_path / "s")
    filled()[:1].save(tmp_path / "s")
    assert len(open_store(tmp_path / "s")) == 1


WRONG_APPENDS = {
    "another shape": (
        FIRST,
        np.zeros((1, 2, 5)),
        SPANS[:1],
        r"append: a bank of {'vectors': \(1, 2, 5\)}, expected a bank of {'vectors': \(1, 2, 4\)}",
    ),
    "a span for each": (
        FIRST,
        vectors(2),
        SPANS[:1],
        r"\(2, 2, 4\)}, expected a bank of {'vectors': \(1, 2, 4\)}",
    ),
    "spans of numbers": (
        FIRST,
        vectors(1),
        SPANS[:1] + 0.5,
        r"spans float64\[1, 4\], expected int \[n, 4\]",
    ),
    "NaN": (FIRST, np.full((1, 2, 4), np.nan), SPANS[:1], "NaN or infinity"),
    "infinity": (FIRST, np.full((1, 2, 4), np.inf), SPANS[:1], "NaN or infinity"),
    "no such document": (5, vectors(1), SPANS[:1], "document 5: expected a number from 0 to 1"),
    "before the first": (-1, vectors(1), SPANS[:1], "document -1: expected a number"),
    "a long chunk": (FIRST, vectors(1), [[0, 9, 5, 20]], "more than 8 tokens"),
    "no tokens": (FIRST, vectors(1), [[0, 0, 5, 20]], "lies outside its document"),
    "tokens beyond": (FIRST, vectors(1), [[16, 5, 5, 20]], "lies outside its document"),
    "bytes beyond": (FIRST, vectors(1), [[0, 8, 5, 46]], "lies outside its document"),
    "bytes before": (FIRST, vectors(1), [[0, 8, 4, 20]], "lies outside its document"),
    "bytes backwards": (FIRST, vectors(1), [[0, 8, 20, 19]], "lies outside its document"),
    "huge": (FIRST, vectors(1), [[2**62, 8, 5, 20]], "lies outside its document"),
    "a name that a terminal obeys": (
        StoredDocument("\x1b[2J", 1, 1),
        vectors(1),
        SPANS[:1],
        "expected a name of 1 to 1024 printable",
    ),
    "no name": (
        StoredDocument("", 1, 1),
        vectors(1),
        SPANS[:1],
        "expected a name of 1 to 1024 printable",
    ),
    "half a character": (
        StoredDocument("\ud800", 1, 1),
        vectors(1),
        SPANS[:1],
        "expected a name of 1 to 1024 printable",
    ),
    "a size below zero": (
        StoredDocument("x", -1, 1),
        vectors(1),
        SPANS[:1],
        r"sizes \[-1, 1, 0\], expected 0 to",
    ),
}


@pytest.mark.parametrize(
    ("document", "memories", "spans", "message"), WRONG_APPENDS.values(), ids=WRONG_APPENDS.keys()
)
def test_what_cannot_be_stored_is_refused_and_changes_nothing(document, memories, spans, message):
    store = filled()
    with pytest.raises(StoreError, match=message):
        store.append(document, bank(memories), np.asarray(spans))
    assert (len(store), len(store.documents)) == (4, 2)


OTHERS = {
    "tokenizer": (
        {"tokenizer": "f" * 16},
        "tokenizer 0000000000000000, expected ffffffffffffffff of stage ae",
    ),
    "parameters": (
        {"sha256": "cd" * 32},
        "sha256 is abababababababab.*, expected cdcdcdcdcdcdcdcd",
    ),
    "settings": (
        {"settings": ENCODER.settings | {"compat": ["x"]}},
        r"config.model.compat is \[\], expected \['x'\]",
    ),
    "an absent setting": ({"settings": {}}, "config.model.encoder"),
    "length": ({"chunk_length": 16}, "chunk_length is 8, expected 16"),
    "shape": ({"leaves": {"vectors": (1, 8)}}, r"leaves is .*\(2, 4\)}, expected .*\(1, 8\)}"),
}


@pytest.mark.parametrize(("changes", "message"), OTHERS.values(), ids=OTHERS.keys())
def test_a_store_of_another_encoder_is_refused(changes, message, tmp_path):
    filled().save(tmp_path / "s")
    with pytest.raises(StoreError, match=message) as refused:
        open_store(tmp_path / "s", expected=dataclasses.replace(ENCODER, **changes))
    assert str(refused.value).startswith(f"{tmp_path / 's'}: ") and "\n" not in str(refused.value)
    other = dataclasses.replace(ENCODER, stage="combined", family="memory_model", step=9)
    assert len(open_store(tmp_path / "s", expected=other)) == 4, "the same encoder in another stage"


def test_names_that_would_not_be_read_again_are_refused_when_they_are_added(monkeypatch, tmp_path):
    store = filled()
    taken = sum(len(f"{document.name}\n".encode()) for document in store.documents)
    monkeypatch.setattr(store_module, "NAMES_LIMIT", taken + 5)
    span = np.array([[0, 1, 0, 1]])
    with pytest.raises(StoreError, match=f"more than {taken + 5} bytes of documents' names"):
        store.append(StoredDocument("\u00e9\u00e9c", 1, 1), bank(vectors(1)), span)
    with pytest.raises(StoreError, match="bytes of documents' names"):
        store.extend(filled())
    assert (len(store), len(store.documents)) == (4, 2)
    store.append(StoredDocument("\u00e9\u00e9", 1, 1), bank(vectors(1)), span)
    with pytest.raises(StoreError, match="bytes of documents' names"):
        store.append(StoredDocument("c", 1, 1), bank(vectors(1)), span)
    monkeypatch.setattr(store_file, "NAMES_LIMIT", 4)
    with pytest.raises(StoreError) as refused:
        store.save(tmp_path / "s")
    assert str(refused.value).startswith(f"{tmp_path / 's'}: names that are cut off, or of more")
    assert not os.listdir(tmp_path)


def test_a_message_names_the_stage_that_compressed():
    made = dataclasses.replace(ENCODER, checkpoint="runs/a/stages/ae")
    with pytest.raises(StoreError, match=r"Use stage ae \(runs/a/stages/ae\), which compressed"):
        made.require_same(dataclasses.replace(ENCODER, tokenizer="f" * 16), "book.store")
