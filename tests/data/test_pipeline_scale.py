"""Batches at scale: nothing is listed and nothing passed over, batches are those of any number of
hosts, and are placed ahead."""

import threading
import time
import tracemalloc

import numpy as np
import pytest

from memjax.data import RowsError, TrainBatches
from memjax.data.records import Records, RecordsError, locate


class Numbers:
    """Rows that say which they are and count how often they are read; nothing is on disk."""

    row_tokens = 1

    def __init__(self, rows: int):
        self.rows, self.asked = rows, []

    def __len__(self) -> int:
        return self.rows

    def read(self, indices: list[int]) -> np.ndarray:
        self.asked += indices
        return np.array(indices, np.int32)[:, None]


BILLIONS = 10_000_000
"""Rows of 1,024 tokens that 10 billion tokens are."""


def test_ten_million_rows_need_no_memory_and_no_pass():
    rows = Numbers(BILLIONS)
    tracemalloc.start()
    began = time.monotonic()
    batches = TrainBatches(rows, 64, seed=0)
    first = batches.batch(0)["tokens"]
    assert len(rows.asked) == 64
    late = batches.batch(1_000_000)["tokens"]
    assert len(rows.asked) == 128, "a jump reads that batch alone"
    seconds, (_, most) = time.monotonic() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 5
    assert most < 4 * 2**20, "a permutation would be 80 MB"
    assert len({*first[:, 0], *late[:, 0]}) > 100
    # From all over: a shuffle of a window would be of one tenth.
    assert len(np.unique(first // (BILLIONS // 10))) == 10


def test_reading_ahead_is_bounded():
    rows = Numbers(BILLIONS)
    batches = TrainBatches(rows, 64, seed=0).from_step(500_000, threads=2)
    np.testing.assert_array_equal(
        next(batches)["tokens"],
        TrainBatches(Numbers(BILLIONS), 64, seed=0).batch(500_000)["tokens"],
    )
    time.sleep(0.3)
    batches.close()
    assert 64 <= len(rows.asked) <= 64 * (1 + 4 * 2)


def test_every_row_comes_once_an_epoch_at_a_size_that_is_no_power_of_two():
    rows = Numbers(10_007)
    batches = TrainBatches(rows, 10_007, seed=5)
    for epoch in (0, 7):
        assert np.array_equal(np.sort(batches.batch(epoch)["tokens"][:, 0]), np.arange(10_007))


def test_more_rows_than_can_be_shuffled_are_refused():
    with pytest.raises(RowsError, match="expected at most 4294967295"):
        TrainBatches(Numbers(2**32), 4, seed=0)


# Hosts


def whole(hosts: int, step: int, rows: int = 1000, batch_rows: int = 16) -> np.ndarray:
    """The batch that the parts of so many hosts are together, each of a pipeline of its own that
    starts there."""
    parts = np.split(np.arange(batch_rows), hosts)
    own = [
        next(TrainBatches(Numbers(rows), batch_rows, seed=2, part=part).from_step(step, threads=1))
        for part in parts
    ]
    return np.concatenate([batch["tokens"] for batch in own])


@pytest.mark.parametrize("hosts", [2, 4, 8])
def test_any_number_of_hosts_reads_the_same_batches_and_each_its_own_rows(hosts):
    alone = TrainBatches(Numbers(1000), 16, seed=2)
    for step in (0, 61, 62, 63):  # 62.5 batches are an epoch.
        np.testing.assert_array_equal(whole(hosts, step), alone.batch(step)["tokens"])
    rows = Numbers(1000)
    TrainBatches(rows, 16, seed=2, part=np.arange(16 // hosts)).batch(3)
    assert len(rows.asked) == 16 // hosts


def test_hosts_may_come_and_go():
    alone = [TrainBatches(Numbers(1000), 16, seed=2).batch(step)["tokens"] for step in range(12)]
    changing = [
        whole(hosts, 3 * number + step)
        for number, hosts in enumerate((1, 8, 2, 4))
        for step in range(3)
    ]
    np.testing.assert_array_equal(changing, alone)


def test_places_of_a_host_need_not_lie_together():
    part = np.array([1, 2, 7, 12])
    alone = TrainBatches(Numbers(1000), 16, seed=2).batch(40)["tokens"]
    np.testing.assert_array_equal(
        TrainBatches(Numbers(1000), 16, seed=2, part=part).batch(40)["tokens"], alone[part]
    )


# Placing


def test_batches_are_placed_ahead_on_another_thread_and_no_more_than_two():
    plain = TrainBatches(Numbers(1000), 8, seed=2)
    threads, placed = set(), []

    def place(batch):
        threads.add(threading.current_thread())
        placed.append(batch["tokens"])
        return "placed", batch["tokens"] * 2

    batches = plain.from_step(5, threads=2, place=place)
    for step in range(5, 25):
        word, tokens = next(batches)
        assert word == "placed"
        np.testing.assert_array_equal(tokens, 2 * plain.batch(step)["tokens"])
        if step in (9, 17):
            time.sleep(0.2)  # A long step: the next batches are placed meanwhile.
            assert len(placed) == step - 5 + 1 + 2
        assert len(placed) <= step - 5 + 1 + 2
    assert threading.main_thread() not in threads
    batches.close()
    assert not any("prefetch" in thread.name and thread.is_alive() for thread in threads), (
        "the thread ends"
    )


def test_an_error_comes_where_its_batch_was_due():
    class Broken(Numbers):
        def read(self, indices):
            if set(indices) & damaged:
                raise RowsError("the disk is gone")
            return super().read(indices)

    damaged = set(TrainBatches(Numbers(1000), 8, seed=2).batch(4)["tokens"][:, 0].tolist())
    batches = TrainBatches(Broken(1000), 8, seed=2).from_step(
        0, threads=2, place=lambda batch: batch
    )
    for _ in range(4):
        next(batches)
    with pytest.raises(RowsError, match="the disk is gone"):
        next(batches)
    batches.close()


# Files


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """320 files of 5 records of 4 KiB; record i is full of the number i."""
    from array_record.python.array_record_module import ArrayRecordWriter

    folder, files = tmp_path_factory.mktemp("shards"), []
    for shard in range(320):
        files.append(folder / f"{shard:03d}.arrayrecord")
        writer = ArrayRecordWriter(str(files[-1]), "group_size:1,uncompressed")
        for number in range(5):
            writer.write(np.full(1024, 5 * shard + number, "<u4").tobytes())
        writer.close()
    return files


def number(record: bytes) -> int:
    return int(np.frombuffer(record, "<u4")[-1])


def test_records_of_many_files_are_numbered_through(shards):
    records = Records(shards)
    assert len(records) == 1600
    asked = np.random.default_rng(0).integers(0, 1600, 64).tolist()
    assert [number(record) for record in records.read(asked)] == asked
    assert number(records.read([1599])[0]) == 1599
    ends = range(5, 1601, 5)
    assert locate(ends, 1599) == (319, 4) and locate(ends, 5) == (1, 0)
    assert records.read([]) == []
    for index in (-1, 1600):
        with pytest.raises(IndexError):
            records.read([index])


def test_files_are_opened_when_they_are_read(shards, tmp_path):
    absent = [tmp_path / "absent", *shards[1:]]
    records = Records(absent, counts=[5] * 320)
    assert number(records.read([5])[0]) == 5, "the file that is not there is not looked for"
    with pytest.raises(RecordsError, match="absent: record 3 cannot be read"):
        records.read([3])
    with pytest.raises(RecordsError, match="absent: truncated, damaged or not an ArrayRecord file"):
        Records(absent)


def test_a_damaged_record_is_named_and_the_others_are_read(shards, tmp_path):
    raw = bytearray(shards[2].read_bytes())
    at = raw.find(np.full(8, 12, "<u4").tobytes())
    raw[at + 100] ^= 1
    (tmp_path / "damaged").write_bytes(raw)
    records = Records([shards[0], tmp_path / "damaged", shards[1]])
    with pytest.raises(RecordsError, match=r"damaged: record 2 cannot be read \(.*hash mismatch"):
        records.read([0, 6, 7, 14])
    assert [number(record) for record in records.read([6, 8, 0, 14])] == [11, 13, 0, 9]
