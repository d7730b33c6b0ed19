"""Parquet and ArrayRecord files as sources."""

import json
import pickle

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from memjax.data.sources import CorpusError, DocumentError, open_source

STORIES = [f"story {i} " + "é word " * (i % 9) for i in range(90)]


def agreed(source) -> list:
    """The documents of a source, which must be the same in every way of asking for them."""
    documents = list(source)
    for size in (1, 300, 1 << 40):
        blocks = source.blocks(size)
        assert blocks == source.blocks(size)
        read = [document for block in blocks for document in pickle.loads(pickle.dumps(source)).read(block)]
        assert read == documents
    assert [found for i in range(len(source)) if (found := source[i]).text.strip()] == documents
    with pytest.raises(IndexError, match=str(len(source))):
        source[len(source)]
    assert json.loads(json.dumps(source.stamp())) == source.stamp()
    return documents


def write_parquet(file, column, rows=20, **options):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    column = column if isinstance(column, pa.Array) else pa.array(column)
    table = pa.table({"id": np.arange(len(column)), "text": column})
    parquet.write_table(table, file, row_group_size=rows, **options)


def write_records(file, records, options="group_size:1"):
    writer = ArrayRecordWriter(str(file), options)
    for record in records:
        writer.write(record)
    writer.close()


@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "dictionary"])
def test_parquet_of_every_kind_of_text(tmp_path, kind):
    pa = pytest.importorskip("pyarrow")
    kinds = {"string": pa.string(), "large_string": pa.large_string(), "binary": pa.binary()}
    values = [text.encode() for text in STORIES] if kind == "binary" else STORIES
    column = pa.array(values).dictionary_encode() if kind == "dictionary" else pa.array(values, kinds[kind])
    write_parquet(tmp_path / "a.parquet", column)
    write_parquet(tmp_path / "b.parquet", [" ", "last"])
    source = open_source(str(tmp_path))
    documents = agreed(source)
    assert [document.text for document in documents] == [*STORIES, "last"]
    assert documents[37].id == f"{tmp_path}/a.parquet#37"
    assert documents[90].id == f"{tmp_path}/b.parquet#1"
    assert len(source) == 92
    assert source[90].text == " "


def test_parquet_blocks_are_row_groups(tmp_path):
    write_parquet(tmp_path / "a.parquet", ["x" * 100] * 90, rows=10, use_dictionary=False)
    source = open_source(str(tmp_path / "a.parquet"))
    starts = [block.start for block in source.blocks(2100)]
    # About 1,040 bytes a group, so two or three of them in a block.
    assert all(start % 10 == 0 for start in starts)
    assert 3 <= len(starts) <= 5
    assert len(source.blocks(1)) == 9


def test_parquet_is_read_with_constant_memory(tmp_path):
    pa = pytest.importorskip("pyarrow")
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(97, 123, 2000))) for _ in range(4000)]
    write_parquet(tmp_path / "a.parquet", texts, rows=4000, use_dictionary=False, data_page_size=1 << 16)
    source = open_source(str(tmp_path / "a.parquet"))
    len(source)
    default = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(default)
    pa.set_memory_pool(pool)
    try:
        assert sum(len(document.text) for document in source) == 8_000_000
    finally:
        pa.set_memory_pool(default)
    assert 0 < pool.max_memory() < 4_000_000, "of 8 MB in one row group"


def test_damaged_rows_of_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    write_parquet(tmp_path / "a.parquet", pa.array([b"one", None, b"t\xe9o", b"three"]))
    source = open_source(str(tmp_path / "a.parquet"), skip_damaged=True)
    assert [document.id[-2:] for document in source] == ["#0", "#3"]
    assert source.skipped == {"not text": 1, "not UTF-8": 1}
    with pytest.raises(DocumentError, match=r"a\.parquet#1: field 'text' holds a NoneType"):
        list(open_source(str(tmp_path / "a.parquet")))


def test_parquet_files_that_cannot_be_read(tmp_path, monkeypatch):
    pq = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "a.parquet"
    write_parquet(file, STORIES)
    whole = file.read_bytes()
    with pytest.raises(CorpusError, match=r"a\.parquet: has no column 'content', only id, text; set config\.data\.text_field"):
        list(open_source(str(file), "content", skip_damaged=True))
    with pytest.raises(CorpusError, match=r"a\.parquet: column 'id' holds int64, not text"):
        list(open_source(str(file), "id", skip_damaged=True))
    page = pq.read_metadata(file).row_group(2).column(1).data_page_offset
    for raw in (whole[:-100], b"not Parquet", whole[:page] + b"\xff" * 60 + whole[page + 60 :]):
        file.write_bytes(raw)
        with pytest.raises(CorpusError, match=r"a\.parquet: is no Parquet file, or damaged \("):
            list(open_source(str(file), skip_damaged=True))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(CorpusError, match=r"a\.parquet: is read by the package pyarrow"):
        list(open_source(str(file)))


@pytest.mark.parametrize("options", ["group_size:1", "group_size:7"])
@pytest.mark.parametrize("form", ["text", "json"])
def test_array_records_are_texts_or_json_objects(tmp_path, form, options):
    records = [text if form == "text" else json.dumps({"text": text, "id": 3}) for text in [*STORIES, " \n"]]
    write_records(tmp_path / "a.array_record", (record.encode() for record in records), options)
    write_records(tmp_path / "b.arrayrecord", [b"last"])
    source = open_source(str(tmp_path))
    documents = agreed(source)
    assert [document.text for document in documents] == [*STORIES, "last"]
    assert documents[37].id == f"{tmp_path}/a.array_record#37"
    assert len(source) == 92
    assert len(source.blocks(300)) > 8


def test_the_first_array_record_tells_what_all_are(tmp_path):
    file = tmp_path / "a.arrayrecord"
    write_records(file, [b'{"text": "one"}', b"two", b"[2]", b"\xff", b'{"text": "three"}'])
    source = open_source(str(file), skip_damaged=True)
    assert [document.text for document in source] == ["one", "three"]
    assert source.skipped == {"not JSON": 1, "not a JSON object": 1, "not UTF-8": 1}
    with pytest.raises(CorpusError, match=r"a\.arrayrecord#0: has no field 'body', only text; set config\.data\.text_field"):
        list(open_source(str(file), "body"))
    # A text may look like JSON; an empty field says that it is text.
    texts = open_source(str(file), "", skip_damaged=True)
    assert [document.text for document in texts] == ['{"text": "one"}', "two", "[2]", '{"text": "three"}']
    write_records(file, [b"one", b'{"text": "two"}', b"\xff"])
    assert [open_source(str(file))[i].text for i in range(2)] == ["one", '{"text": "two"}']
    with pytest.raises(CorpusError, match=r"#2: the record is not UTF-8 at byte 0.*tfds:NAME"):
        open_source(str(file))[2]


def test_array_record_files_that_cannot_be_read(tmp_path):
    file = tmp_path / "a.arrayrecord"
    write_records(file, [text.encode() for text in STORIES])
    whole = file.read_bytes()
    for raw in (b"", b"not a record", whole[:-1], whole[: len(whole) // 2], whole[:64] + bytes(100) + whole[164:]):
        file.write_bytes(raw)
        with pytest.raises(CorpusError, match=r"a\.arrayrecord: is no ArrayRecord file, or truncated or damaged \("):
            list(open_source(str(file), skip_damaged=True))
    write_records(file, [])
    assert agreed(open_source(str(file))) == []
