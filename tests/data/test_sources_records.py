"""Parquet and ArrayRecord files as sources."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from memjax.data.sources import CorpusError, DocumentError, open_source, records, streams

STORIES = [f"story {i} " + "é word " * (i % 9) for i in range(90)]


def agreed(source) -> list:
    """The documents of a source, which must be the same in every way of asking for them."""
    documents = list(source)
    for size in (1, 300, 1 << 40):
        blocks = source.blocks(size)
        assert blocks == source.blocks(size)
        read = [
            document
            for block in blocks
            for document in pickle.loads(pickle.dumps(source)).read(block)
        ]
        assert read == documents
    assert json.loads(json.dumps(source.mtime_signature())) == source.mtime_signature()
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
    column = (
        pa.array(values).dictionary_encode()
        if kind == "dictionary"
        else pa.array(values, kinds[kind])
    )
    write_parquet(tmp_path / "a.parquet", column)
    write_parquet(tmp_path / "b.parquet", [" ", "last"])
    source = open_source(str(tmp_path))
    documents = agreed(source)
    assert [document.text for document in documents] == [*STORIES, "last"]
    assert documents[37].id == f"{tmp_path}/a.parquet#37"
    assert documents[90].id == f"{tmp_path}/b.parquet#1"


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
    write_parquet(
        tmp_path / "a.parquet", texts, rows=4000, use_dictionary=False, data_page_size=1 << 16
    )
    source = open_source(str(tmp_path / "a.parquet"))
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
    with pytest.raises(DocumentError, match=r"a\.parquet#1: field 'text' holds null"):
        list(open_source(str(tmp_path / "a.parquet")))


def test_a_shard_of_nulls_alone_is_damaged_rows(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    write_parquet(tmp_path / "a.parquet", ["one", "two"])
    for name, kind in (("b", pa.null()), ("c", pa.string()), ("d", pa.large_binary())):
        parquet.write_table(pa.table({"text": pa.nulls(30, kind)}), tmp_path / f"{name}.parquet")
    source = open_source(str(tmp_path), skip_damaged=True)
    for size in (1, 1 << 40):
        documents = [document for block in source.blocks(size) for document in source.read(block)]
        assert [document.text for document in documents] == ["one", "two"]
        counts, messages = source.take_skipped()
        assert counts == {"not text": 90} and len(messages) == 20
        assert "b.parquet#0: field 'text' holds null" in messages[0]
    with pytest.raises(DocumentError, match=r"b\.parquet#0: field 'text' holds null"):
        list(open_source(str(tmp_path)))


def test_columns_of_one_name(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    columns = [pa.array([letter]) for letter in "abc"]
    file = tmp_path / "a.parquet"
    parquet.write_table(pa.Table.from_arrays(columns, names=["text", "text", "x"]), file)
    with pytest.raises(CorpusError, match=r"a\.parquet: 2 columns 'text', expected one"):
        list(open_source(str(file)))
    parquet.write_table(pa.Table.from_arrays(columns, names=["text", "x", "x"]), file)
    assert [document.text for document in open_source(str(file))] == ["a"]


def test_names_of_columns_and_keys_are_few_and_printable(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    names = ["\x1b]0;title\x07", "k" * 5000, *map(str, range(10_000))]
    table = pa.table({name: [1] for name in names})
    parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text(json.dumps(dict.fromkeys(names)))
    for file in ("a.parquet", "b.jsonl"):
        with pytest.raises(CorpusError, match=r"no (column|field) 'text', only ") as error:
            list(open_source(str(tmp_path / file)))
        message = str(error.value)
        assert r"\x1b]0;title\x07, kkkk" in message and "0, 1, 2, 3, 4, 5 and 9994 more" in message
        assert message.endswith("Set config.data.text_field to one of them")
        assert len(message) < 500


def test_parquet_files_that_cannot_be_read(tmp_path, monkeypatch):
    pq = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "a.parquet"
    write_parquet(file, STORIES)
    whole = file.read_bytes()
    with pytest.raises(
        CorpusError,
        match=r"a\.parquet: no column 'content', only id, text\. Set config\.data\.text_field",
    ):
        list(open_source(str(file), "content", skip_damaged=True))
    with pytest.raises(CorpusError, match=r"a\.parquet: column 'id' holds int64, expected text"):
        list(open_source(str(file), "id", skip_damaged=True))
    page = pq.read_metadata(file).row_group(2).column(1).data_page_offset
    for raw in (whole[:-100], b"not Parquet", whole[:page] + b"\xff" * 60 + whole[page + 60 :]):
        file.write_bytes(raw)
        with pytest.raises(CorpusError, match=r"a\.parquet: damaged or not a Parquet file \("):
            list(open_source(str(file), skip_damaged=True))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(CorpusError, match=r"a\.parquet: needs the package pyarrow"):
        list(open_source(str(file)))


@pytest.mark.parametrize("options", ["group_size:1", "group_size:7"])
@pytest.mark.parametrize("form", ["text", "json"])
def test_array_records_are_texts_or_json_objects(tmp_path, form, options):
    records = [
        text if form == "text" else json.dumps({"text": text, "id": 3})
        for text in [*STORIES, " \n"]
    ]
    write_records(tmp_path / "a.array_record", (record.encode() for record in records), options)
    write_records(tmp_path / "b.arrayrecord", [b"last"])
    source = open_source(str(tmp_path))
    documents = agreed(source)
    assert [document.text for document in documents] == [*STORIES, "last"]
    assert documents[37].id == f"{tmp_path}/a.array_record#37"
    assert len(source.blocks(300)) > 8


def test_the_first_array_record_tells_what_all_are(tmp_path):
    file = tmp_path / "a.arrayrecord"
    write_records(file, [b'{"text": "one"}', b"two", b"[2]", b"\xff", b'{"text": "three"}'])
    source = open_source(str(file), skip_damaged=True)
    assert [document.text for document in source] == ["one", "three"]
    assert source.skipped == {"not JSON": 1, "not a JSON object": 1, "not UTF-8": 1}
    with pytest.raises(
        CorpusError,
        match=r"a\.arrayrecord#0: no field 'body', only text\. Set config\.data\.text_field",
    ):
        list(open_source(str(file), "body"))
    # A text may look like JSON; an empty field says that it is text.
    texts = open_source(str(file), "", skip_damaged=True)
    assert [document.text for document in texts] == [
        '{"text": "one"}',
        "two",
        "[2]",
        '{"text": "three"}',
    ]
    write_records(file, [b"one", b'{"text": "two"}', b"\xff"])
    source = open_source(str(file), skip_damaged=True)
    assert [document.text for document in source] == ["one", '{"text": "two"}']
    with pytest.raises(CorpusError, match=r"#2: not UTF-8 at byte 0.*tfds:NAME"):
        list(open_source(str(file)))


def test_array_record_files_that_cannot_be_read(tmp_path):
    file = tmp_path / "a.arrayrecord"
    write_records(file, [text.encode() for text in STORIES])
    whole = file.read_bytes()
    for raw in (
        b"",
        b"not a record",
        whole[:-1],
        whole[: len(whole) // 2],
        whole[:64] + bytes(100) + whole[164:],
    ):
        file.write_bytes(raw)
        with pytest.raises(
            CorpusError,
            match=r"a\.arrayrecord: (truncated, damaged or not an ArrayRecord file|record \d+"
            r" cannot be read) \(",
        ):
            list(open_source(str(file), skip_damaged=True))
    write_records(file, [])
    assert agreed(open_source(str(file))) == []


def test_a_folder_whose_name_is_not_utf8(tmp_path):
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    (folder / "a.txt").write_text("text")
    write_parquet(tmp_path / "b.parquet", ["parquet"])
    writer = ArrayRecordWriter(str(tmp_path / "c.arrayrecord"), "group_size:1")
    writer.write(b"record")
    writer.close()
    (tmp_path / "c.arrayrecord").rename(folder / "c.arrayrecord")
    source = open_source(str(folder))
    assert [document.text for document in source] == ["text", "record"]
    (tmp_path / "b.parquet").rename(folder / "b.parquet")
    with pytest.raises(CorpusError, match=r"caf\\udce9/b\.parquet: a path that is not UTF-8"):
        list(open_source(str(folder)))
    (folder / "a.txt").write_bytes(b"t\xe9xt")
    with pytest.raises(DocumentError, match=r"caf\\udce9/a\.txt: not UTF-8"):
        list(source)


def parquet_reads(monkeypatch) -> list[int]:
    """The list of what `iter_batches` is asked to decode at once."""
    pq, asked = pytest.importorskip("pyarrow.parquet"), []
    read = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile,
        "iter_batches",
        lambda file, rows, *rest, **options: (
            asked.append(rows) or read(file, rows, *rest, **options)
        ),
    )
    return asked


def test_few_bytes_of_parquet_cannot_stand_for_gigabytes(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "LONGEST", 50_000)
    options = {"compression": "zstd", "use_dictionary": False}
    file = tmp_path / "a.parquet"
    write_parquet(file, ["a" * 60_000], **options)
    with pytest.raises(CorpusError, match=r"a\.parquet: 60,\d+ bytes of 1 rows from \d+ on disk"):
        list(open_source(str(file)))
    write_parquet(file, ["b" * 1000] * 5000, rows=5000, **options)
    with pytest.raises(CorpusError, match=r"5,000 rows .* 100 per byte on disk\. Write"):
        list(open_source(str(file), skip_damaged=True))
    write_parquet(file, ["b" * 1000] * 5000, rows=40, **options)
    assert len(list(open_source(str(file)))) == 5000, "the advice works"
    write_parquet(file, [*STORIES, os.urandom(30_000).hex(), "last"], rows=200, **options)
    for skip in (False, True):
        with pytest.raises(CorpusError, match=r"a\.parquet#90: 60,000 bytes, expected at most"):
            list(open_source(str(file), skip_damaged=skip))


@pytest.mark.parametrize("stored", ["plain", "dictionary"])
def test_rows_of_one_long_word_of_a_dictionary_are_decoded_one_by_one(
    tmp_path, monkeypatch, stored
):
    pa = pytest.importorskip("pyarrow")
    monkeypatch.setattr(streams, "LONGEST", 50_000)
    asked = parquet_reads(monkeypatch)
    for word, at_once in (("c" * 40_000, 1), ("c" * 10_000, 4), ("c", 64)):
        column = pa.array([word] * 300)
        column = column.dictionary_encode() if stored == "dictionary" else column
        write_parquet(tmp_path / "a.parquet", column, rows=300, compression="zstd")
        assert [d.text for d in open_source(str(tmp_path / "a.parquet"))] == [word] * 300
        assert asked.pop() == at_once


def test_a_list_of_texts_in_parquet_is_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    column = pa.array([[["a"] * 9] * 9])
    write_parquet(tmp_path / "a.parquet", column)
    with pytest.raises(CorpusError, match=r"column 'text' holds list<.*>, expected text"):
        list(open_source(str(tmp_path / "a.parquet")))


@pytest.mark.parametrize("options", ["zstd", "brotli,transpose:true", "snappy", "uncompressed"])
def test_few_bytes_of_array_record_cannot_stand_for_gigabytes(tmp_path, monkeypatch, options):
    monkeypatch.setattr(streams, "LONGEST", 50_000)
    monkeypatch.setattr(records, "LARGEST_GROUP", 500_000)
    file = tmp_path / "a.arrayrecord"
    noise = [os.urandom(size).hex().encode() for size in (40, 10_000, 900) * 40]
    write_records(file, [*noise, *[b"a" * 9_000] * 60], f"group_size:60,{options}")
    with pytest.raises(CorpusError, match=r"a\.arrayrecord: a group of 60 records of 5\d\d,"):
        list(open_source(str(file)))
    write_records(file, [*noise, *[b"a" * 9_000] * 60], f"group_size:1,{options}")
    assert len(list(open_source(str(file)))) == 180, "the advice works"
    write_records(file, [*noise, b"b" * 60_000], f"group_size:1,{options}")
    with pytest.raises(CorpusError, match=r"a group of 1 records of 60,\d+ bytes, expected"):
        list(open_source(str(file)))
    write_records(file, [*noise[:9], b"b" * 60_000], f"group_size:10,{options}")
    for skip in (False, True):
        with pytest.raises(CorpusError, match=r"a\.arrayrecord#9: 60,000 bytes, expected at most"):
            list(open_source(str(file), skip_damaged=skip))


def test_long_records_are_read_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "LONGEST", 50_000)
    asked, read = [], records.Records.read
    monkeypatch.setattr(
        records.Records, "read", lambda own, numbers: asked.append(numbers) or read(own, numbers)
    )
    for size, at_once in ((40_000, 1), (12_000, 4), (10, 64)):
        write_records(tmp_path / "a.arrayrecord", [b"a" * size] * 130)
        assert len(list(open_source(str(tmp_path / "a.arrayrecord")))) == 130
        assert max(map(len, asked)) == at_once
        asked.clear()
