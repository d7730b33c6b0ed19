"""Record files appear whole; what a disk refuses or loses is an error that names the file."""

import resource

import pytest

from memjax.data import records
from memjax.data.packing import Layout
from memjax.data.records import Records, write_records
from memjax.data.rows import Shard

RECORDS = [bytes([number]) * 1_000 for number in range(200)]


class Losing:
    """A writer to a disk that is full without an error: every other record is lost."""

    def __init__(self, path, options):
        self._writer, self._number = WRITER(path, options), 0

    def write(self, record):
        self._number += 1
        if self._number % 2:
            self._writer.write(record)

    def close(self):
        self._writer.close()


WRITER = records.ArrayRecordWriter


def write(path, tokenizer):
    with write_records(path) as writer:
        for record in RECORDS:
            writer.write(record)


def write_shard(path, tokenizer):
    shard = Shard(path, Layout(500, "packed", "right"), tokenizer)
    try:
        shard.add([[7] * 100_000])
        return shard.finish()
    finally:
        shard.abandon()


@pytest.mark.parametrize("few", [[], RECORDS[:1], RECORDS])
def test_what_is_written_is_read(tmp_path, few):
    with write_records(tmp_path / "a") as writer:
        writer.write(*few)
    assert Records([tmp_path / "a"]).read(range(len(few))) == few
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("write", [write, write_shard])
def test_records_that_are_lost_are_missed(tmp_path, tokenizer, monkeypatch, write):
    monkeypatch.setattr(records, "ArrayRecordWriter", Losing)
    path = tmp_path / "a"
    with pytest.raises(OSError, match=f"{path}: 100 records on disk, expected 200. Check whether"):
        write(path, tokenizer)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [write, write_shard])
def test_a_disk_that_refuses_is_named(tmp_path, tokenizer, write):
    path, limit = tmp_path / "a", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        with pytest.raises(OSError, match=f"File too large: '{path}'"):
            write(path, tokenizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list(tmp_path.iterdir())


def test_an_error_of_another_kind_stays_what_it_is(tmp_path):
    def records():
        yield from RECORDS
        raise RuntimeError("not the disk")

    def write():
        with write_records(tmp_path / "a") as writer:
            for record in records():
                writer.write(record)

    with pytest.raises(RuntimeError, match="not the disk"):
        write()
    assert not list(tmp_path.iterdir())
