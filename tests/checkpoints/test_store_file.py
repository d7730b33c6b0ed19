"""The file of a store: its tables, its size, the format before, and bombs.

Shapes: N chunk, K = 2 vectors, E = 4.
"""

import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from memjax.checkpoints.store import MemoryStore, open_store
from memjax.checkpoints.store_columns import packed_bytes, packed_table, unpacked_table
from memjax.checkpoints.store_records import StoredDocument, StoreError
from memjax.models.memory import bank
from memjax.testing.stores import ENCODER, FIRST, SECOND, contents, filled, seal, vectors

OLD = Path(__file__).parent / "data" / "format_1.store"
"""`filled("int8")`, written in format 1."""


def refused(path, match, info, tensors):
    """Write a store whose checksum is right, which is refused."""
    seal(path, info, tensors)
    with pytest.raises(StoreError, match=match):
        open_store(path)


def test_other_programs_read_a_store(tmp_path):
    """The file is plain safetensors: any reader lists and loads its tensors, and zlib the rest."""
    store = filled("int8")
    store.save(tmp_path / "s")
    tensors = load_file(tmp_path / "s")
    names, documents, spans = (
        zlib.decompress(tensors[name].tobytes()) for name in ("names", "documents", "spans")
    )
    assert names.decode().split("\n") == [FIRST.name, SECOND.name]
    # Tokens, bytes, and bytes between: the second begins at 0, which is 45 before the first ends.
    assert documents == bytes([1, 20, 8, 1, 40, 16, 1, 5, 256 - 45])
    assert spans == bytes(
        [
            *(1, 0, 0, 0, 1),
            *(1, 0, 0, 0, 256 - 20),
            *(1, 0, 0, 256 - 4, 0),
            *(1, 5, 0, 0, 256 - 45),
            *(1, 15, 13, 12, 16),
        ]
    )
    wide = tensors["leaf.vectors"] * tensors["leaf.vectors.scale"][..., None]
    np.testing.assert_array_equal(wide, store.memories.leaves["vectors"])


@pytest.mark.parametrize("largest", [0, 1, 127, 128, 2**15, 2**31, 2**62])
def test_tables_of_every_width(largest):
    draw = np.random.default_rng(0)
    table = draw.integers(-largest, largest, (9, 3), endpoint=True)
    table[0], table[:, 1] = [largest, 0, -largest], 0
    np.testing.assert_array_equal(unpacked_table(packed_table(table), 9, 3, "table"), table)
    none = packed_table(table[:0])
    assert unpacked_table(none, 0, 3, "table").shape == (0, 3)
    with pytest.raises(StoreError, match="table that are"):
        unpacked_table(packed_table(table + 1), 10, 3, "table")


def test_a_store_of_the_format_before_opens_with_equal_values(tmp_path):
    store, again = filled("int8"), open_store(OLD, expected=ENCODER)
    assert tuple(again.stored) == ("vectors", "vectors.scale")
    for name, leaf in store.stored.items():
        np.testing.assert_array_equal(again.stored[name], leaf)
    np.testing.assert_array_equal(again.spans, store.spans)
    assert (again.documents, again.provenance) == (store.documents, ENCODER)
    store.extend(again)
    assert len(store) == 8
    for number, one in enumerate((again, filled("int8"))):
        one.save(tmp_path / str(number))
    assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes()


def test_what_is_beside_the_memories_is_small(tmp_path):
    draw, chunks, documents = np.random.default_rng(0), 8, 200
    store = MemoryStore(ENCODER, "int4")
    texts = [int(draw.integers(20, 40, chunks).sum()) for _ in range(documents)]
    start = 0
    for number, text in enumerate(texts):
        ends = np.sort(draw.choice(np.arange(1, text), chunks - 1, replace=False)).tolist()
        edges = np.array([0, *ends, text]) + start
        spans = np.stack([8 * np.arange(chunks), np.full(chunks, 8), edges[:-1], edges[1:]], axis=1)
        spans[-1, 1] = 3
        document = StoredDocument(f"novel.txt#{number}", 8 * chunks - 5, text, start)
        store.append(document, bank(vectors(chunks)), spans)
        start += text
    store.save(tmp_path / "s")
    again = open_store(tmp_path / "s")
    np.testing.assert_array_equal(again.spans, store.spans)
    assert again.documents == store.documents
    tensors = load_file(tmp_path / "s")
    assert tensors["spans"].nbytes < 1.3 * len(store)
    assert tensors["documents"].nbytes + tensors["names"].nbytes < 8 * documents
    shuffled = store[draw.permutation(len(store))]
    shuffled.save(tmp_path / "s")
    np.testing.assert_array_equal(open_store(tmp_path / "s").spans, shuffled.spans)


def test_bombs_take_no_memory(tmp_path):
    """Of memories that have a row per document, no row bounds the number of chunks."""
    path = tmp_path / "s"
    filled("int8").save(path)
    info, tensors = contents(path)
    info["encoder"] |= {"kind": "chain"}
    tensors |= {name: tensors[name][:2] for name in ("leaf.vectors", "leaf.vectors.scale")}
    seal(path, info, tensors)
    assert len(open_store(path)) == 4
    zeros = {"spans": packed_bytes(bytes(5))}
    refused(
        path, "chunks: expected an integer from 0 to 4194304", info | {"chunks": 2**40}, tensors
    )
    refused(path, "chunk 0 lies outside", info | {"chunks": 2**15}, tensors | zeros)
    bomb = tensors | {"spans": packed_bytes(bytes(2**24))}
    tracemalloc.start()
    try:
        refused(path, "spans that are cut off, or of more than 165 bytes", info, bomb)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_damage_of_the_format_before(tmp_path):
    path = tmp_path / "s"
    info, tensors = contents(OLD)
    for column, value in ((0, 2), (0, -1), (1, 2**62), (2, 9), (4, 2**53)):
        spans = tensors["spans"].copy()
        spans[1, column] = value
        refused(path, "chunk 1 lies outside its document", info, tensors | {"spans": spans})
    refused(path, "0 documents with", info, tensors | {"documents": tensors["documents"][:0]})
    refused(path, "tensor '", info, tensors | {"spans": tensors["spans"][:3]})
    path.write_bytes(OLD.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match="contents that are not those that were written"):
        open_store(path)
