"""A store of several files: opened as one, resumed, appended to, and refused where it is not whole.

Shapes: N chunk, K = 2 vectors, E = 4.
"""

import dataclasses
import json
import re
import shutil
import tracemalloc

import numpy as np
import pytest

from memjax.checkpoints import store_folder
from memjax.checkpoints.rounding import DTYPES
from memjax.checkpoints.store import MemoryStore, open_store
from memjax.checkpoints.store_folder import StoreFolder, bytes_of, is_folder, part_file
from memjax.checkpoints.store_records import StoredDocument, StoreError
from memjax.models.memory import Memories, bank
from memjax.testing.stores import ENCODER, FIRST, SPANS, filled, vectors

OTHER = dataclasses.replace(ENCODER, sha256="cd" * 32)


def parts_of(dtype="float32"):
    """Stores of four chunks, of none, and of two."""
    return [filled(dtype), MemoryStore(ENCODER, dtype), filled(dtype)[2:]]


def begin(path, dtype="float32", text="t" * 32, count=3, encoder=ENCODER):
    return StoreFolder.begin(path, encoder, dtype, text, count)


def write(path, dtype="float32"):
    folder = begin(path, dtype)
    for number, store in enumerate(parts_of(dtype)):
        folder.write(number, store.contents)
    folder.finish()
    return path


def files_of(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def same(ours, theirs):
    np.testing.assert_array_equal(ours.spans, theirs.spans)
    assert ours.documents == theirs.documents
    mine, other = ours.memories, theirs.memories
    assert (mine.count, mine.kind) == (other.count, other.kind)
    for name, leaf in other.leaves.items():
        np.testing.assert_array_equal(mine.leaves[name], leaf)


@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_are_read_as_one_store(dtype, tmp_path):
    path, whole = write(tmp_path / "s", dtype), MemoryStore(ENCODER, dtype)
    for store in parts_of(dtype):
        whole.extend(store)
    store = open_store(path, expected=ENCODER)
    same(store, whole)
    assert (len(store), store.nbytes, store.tokens) == (6, whole.nbytes, whole.tokens)
    assert bytes_of(path) == sum(map(len, files_of(path).values()))
    for index in ([5, 0, 4, 3, 3], [2], [], slice(None, None, -2), np.arange(6) % 2 == 0):
        same(store[index], whole[index])
        np.testing.assert_array_equal(
            store.read(index).leaves["vectors"], whole.memories.leaves["vectors"][index]
        )
    for start in range(7):
        for stop in range(start, 7):
            for step in (1, 2, 3):
                same(store[start:stop:step], whole[start:stop:step])
    same(store.of_document(3), whole.of_document(3))
    store.save(tmp_path / "one")
    same(open_store(tmp_path / "one"), whole)
    store.append(StoredDocument("c", 3, 3), bank(vectors(1)), np.array([[0, 3, 0, 3]]))
    assert len(store) == 7 and store.spans[-1, 0] == 4
    with pytest.raises(ValueError, match="read-only"):
        store.stored["vectors"][0] = 0


def test_memories_of_other_kinds_are_read_by_document(tmp_path):
    encoder = dataclasses.replace(ENCODER, leaves={"state": (3,)}, kind="chain")
    folder = begin(tmp_path / "s", count=2, encoder=encoder)
    for number in range(2):
        store = MemoryStore(encoder, "float32")
        row = np.full((1, 3), number, np.float32)
        store.append(FIRST, Memories({"state": row}, 3, "chain"), SPANS)
        folder.write(number, store.contents)
    folder.finish()
    found = open_store(tmp_path / "s").read([1, 0])
    np.testing.assert_array_equal(found.leaves["state"][:, 0], [1, 0])
    assert found.count == 6


def test_a_few_chunks_are_read_without_the_others(tmp_path):
    count, encoder = 2048, dataclasses.replace(ENCODER, leaves={"vectors": (256, 4)})
    folder = begin(tmp_path / "s", count=2, encoder=encoder)
    first = np.arange(count)[:, None] * 8
    spans = np.concatenate([first, np.full_like(first, 8), first, first + 8], axis=1)
    drawn = np.random.default_rng(0).normal(size=(count, 256, 4)).astype(np.float32)
    for number in range(2):
        store = MemoryStore(encoder, "float32")
        store.append(StoredDocument("a", 8 * count, 8 * count), bank(drawn + number), spans)
        folder.write(number, store.contents)
    folder.finish()
    tracemalloc.start()
    try:
        opened = open_store(tmp_path / "s")
        read = opened.read([7, 2 * count - 1, 7]).leaves["vectors"]
        part = opened[count - 2 : count + 2].memories.leaves["vectors"]
        assert opened.nbytes == 2 * drawn.nbytes
        assert tracemalloc.get_traced_memory()[1] < drawn.nbytes / 3
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(read, [drawn[7], drawn[-1] + 1, drawn[7]])
    np.testing.assert_array_equal(part, [*drawn[-2:], *(drawn[:2] + 1)])


def test_what_was_stopped_is_completed_and_is_the_same(tmp_path):
    expected, path = files_of(write(tmp_path / "whole")), tmp_path / "s"
    stores = parts_of()
    begin(path).write(1, stores[1].contents)
    (path / ".part-00002.store.1-a.tmp").write_bytes(b"half")
    assert is_folder(path)
    with pytest.raises(StoreError, match=r"s: parts 0, 2 of 3 are missing, expected a whole store"):
        open_store(path)
    (path / ".part-00002.store.1-a.tmp").unlink()
    folder = begin(path)
    assert folder.todo() == [0, 2]
    with pytest.raises(StoreError, match="parts 0, 2 of 3 are missing"):
        folder.finish()
    for number in folder.todo():
        folder.write(number, stores[number].contents)
    assert begin(path).todo() == []
    with pytest.raises(StoreError, match=r"store\.json is missing, .*Run the command"):
        open_store(path)
    before = (path / "unfinished.json").read_bytes()
    folder.finish()
    assert files_of(path) == expected
    (path / "unfinished.json").write_bytes(before)  # Killed between the two.
    assert begin(path).todo() == [] and len(open_store(path)) == 6
    open_store(path)[:1].save_part(path)
    assert len(open_store(path)) == 7


def test_further_texts_become_further_parts(tmp_path):
    path = write(tmp_path / "s")
    before = files_of(path)
    assert len(begin(path).parts) == 0, "the same text"
    begin(path).finish()
    assert files_of(path) == before
    filled()[:1].save_part(path)
    assert len(open_store(path)) == 7
    part_file(path, 4).write_bytes(b"of a killed process")
    folder = begin(path, text="u" * 32, count=2)
    assert folder.todo() == [4, 5]
    folder.write(4, filled().contents)
    assert len(open_store(path)) == 7, "as it was, until all of them are there"
    with pytest.raises(StoreError, match="a text is being compressed here, expected a whole store"):
        filled().save_part(path)
    folder.write(5, filled()[3:].contents)
    folder.finish()
    store = open_store(path)
    assert len(store) == 12 and len(store.documents) == 2 + 0 + 2 + 2 + 2 + 2
    assert all(files_of(path)[name] == before[name] for name in before if "part" in name)
    assert len(begin(path).parts) == len(begin(path, text="u" * 32).parts) == 0


def damaged(path, name):
    """One way in which a folder is not a whole store of one encoder."""
    if name == "a part is missing":
        part_file(path, 1).unlink()
    elif name == "a part is cut short":
        part_file(path, 1).write_bytes(part_file(path, 1).read_bytes()[:-1])
    elif name == "a part has changed":
        text = bytearray(part_file(path, 2).read_bytes())
        text[-1] ^= 1
        part_file(path, 2).write_bytes(bytes(text))
    elif name == "two encoders":
        store = MemoryStore(OTHER)
        store.append(FIRST, bank(vectors(3)), SPANS)
        store.save(path / "x")
        replace(path, path / "x", 2)
    elif name == "two dtypes":
        filled("bfloat16").save(path / "x")
        replace(path, path / "x", 2)
    elif name == "another list":
        text = (path / "store.json").read_text()
        (path / "store.json").write_text(text.replace("part-00002", "part-00001x"))
    elif name == "no list":
        (path / "store.json").unlink()


def replace(path, file, number):
    """Puts a file in the place of a part, also in the list."""
    file.replace(part_file(path, number))
    listed = json.loads((path / "store.json").read_text())
    listed["files"] |= store_folder.entries([part_file(path, number)])
    store_folder.write_json(path / "store.json", store_folder.sealed(listed))


DAMAGES = {
    "a part is missing": r"part-00001\.store: no such file, expected \d+ bytes. Restore",
    "a part is cut short": r"part-00001\.store: \d+ bytes, expected \d+. Restore",
    "a part has changed": r"part-00002\.store: sha256 \w+, expected \w+. Restore",
    "two encoders": r"part-00002\.store: made by the encoder of stage ae .*sha256 is cdcd",
    "two dtypes": r"part-00002\.store: memories of dtype bfloat16, expected float32",
    "another list": r"store\.json: not what was written",
    "no list": r"s: a folder without store\.json, expected a store of `memjax compress`",
}


@pytest.mark.parametrize(("name", "message"), DAMAGES.items())
def test_a_folder_that_is_not_a_whole_store_is_refused(name, message, tmp_path):
    path = write(tmp_path / "s")
    damaged(path, name)
    before = files_of(path)
    with pytest.raises(StoreError, match=message) as refused:
        open_store(path)
    assert "\n" not in str(refused.value) and files_of(path) == before


def test_work_that_does_not_fit_is_refused_before_it_begins(tmp_path, monkeypatch):
    begun, whole = tmp_path / "begun", write(tmp_path / "whole")
    begin(begun).write(1, filled().contents)
    for path in (begun, whole):
        before = files_of(path)
        where = re.escape(str(path))
        with pytest.raises(StoreError, match=f"{where}: made by the encoder of stage ae"):
            begin(path, encoder=OTHER)
        with pytest.raises(StoreError, match=f"{where}: memories of dtype float32, expected int8"):
            begin(path, "int8")
        assert files_of(path) == before
    for text, count in (("u" * 32, 3), ("t" * 32, 4)):
        with pytest.raises(StoreError, match=r"begun: another text is being compressed here"):
            begin(begun, text=text, count=count)
    with pytest.raises(StoreError, match=r"part-00000\.store: made by the encoder"):
        begin(begun).write(0, MemoryStore(OTHER, "float32").contents)
    with pytest.raises(StoreError, match=r"no store\.json here, expected the folder of a store"):
        filled().save_part(begun)
    with pytest.raises(StoreError, match="whole: memories of dtype float32, expected int8"):
        filled("int8").save_part(whole)
    monkeypatch.setattr(store_folder, "PARTS_LIMIT", 3)
    with pytest.raises(StoreError, match="whole: 4 parts, expected at most 3"):
        begin(whole, text="u" * 32, count=1)
    with pytest.raises(StoreError, match="whole: 3 parts, expected fewer than 3"):
        filled().save_part(whole)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "thesis.tex").touch()
    with pytest.raises(StoreError, match="else: is there already, expected a new or empty folder"):
        begin(tmp_path / "else")
    shutil.rmtree(begun)
    folder = begin(begun, count=1)
    folder.write(0, MemoryStore(ENCODER, "float32").contents)
    with pytest.raises(StoreError, match="nothing but white space, expected text"):
        folder.finish()
