"""Preparation in blocks: the same bytes whoever does them, whatever was done before, and whatever
went wrong."""

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from memjax.config import Data
from memjax.data import CorpusError, RowsError, blocks, is_validation, pack, prepare, workers
from memjax.data.sources import open_source
from memjax.testing.progress import Recorder

HERE = Path(__file__).parent
SPLITS = ("train", "validation")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 8000)


@pytest.fixture
def data(tmp_path, stories) -> Data:
    """Sixty stories, which are five or six blocks."""
    file = tmp_path / "stories.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in stories))
    return Data(corpus=str(file), vocab_size=320, sequence_length=32, validation_share=0.25)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture
def whole(data, tmp_path) -> dict[str, bytes]:
    """What one process makes of it at once."""
    prepare(data, tmp_path / "whole", workers=1)
    return contents(tmp_path / "whole")


def stop_after(monkeypatch, count: int, data: Data, folder: Path) -> None:
    """Prepares until `count` blocks are done."""
    do = workers.done_or_do

    def limited(work, number, **more):
        if number >= count:
            raise KeyboardInterrupt
        return do(work, number, **more)

    with monkeypatch.context() as patch:
        patch.setattr(workers, "done_or_do", limited)
        with pytest.raises(KeyboardInterrupt):
            prepare(data, folder, workers=1)


def partial(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


@pytest.mark.parametrize("count", [2, 3])
def test_any_number_of_processes_writes_the_same_bytes(data, whole, tmp_path, count):
    lines = []
    prepare(data, tmp_path / "many", lines.append, workers=count)
    assert contents(tmp_path / "many") == whole
    found = json.loads(whole["prepared.json"])
    assert 4 < found["blocks"] < 10
    assert f"wrote {found['blocks']} blocks" in lines[2]
    assert "tokens/s" in lines[2] and "MB/s" in lines[2]
    assert not any(name.endswith((".npy", ".tmp")) or "block-" in name for name in whole), (
        "only what is read stays"
    )


def test_each_block_is_packed_on_its_own(data, tmp_path):
    prepared = prepare(data, tmp_path / "data", workers=1)
    source = open_source(data.corpus)
    expected = {split: [] for split in SPLITS}
    dropped = dict.fromkeys(SPLITS, 0)
    for block in blocks.split_blocks(source):
        for split in SPLITS:
            own = [
                d.text
                for d in source.read(block)
                if is_validation(d.text, 0.25) == (split == "validation")
            ]
            arrays = prepared.tokenizer.encode_batch(own)
            rows = list(pack(arrays, 32, prepared.tokenizer.eos_id))
            expected[split] += rows
            dropped[split] += sum(map(len, arrays)) + max(len(own) - 1, 0) - 32 * len(rows)
    for split, rows in (("train", prepared.train), ("validation", prepared.validation)):
        assert len(rows.info["files"]) > 2
        np.testing.assert_array_equal(rows.read(range(len(rows))), np.stack(expected[split]))
        assert rows.info["dropped_tokens"] == dropped[split] > 0
    assert prepared.info["documents"] == 60


def test_a_bar_shows_the_blocks(data, tmp_path):
    recorder = Recorder()
    with recorder.active():
        prepared = prepare(data, tmp_path / "data", workers=1)
    count = prepared.info["blocks"]
    assert recorder.bars == {"data": [1] * count}
    assert recorder.totals == {"data": count}
    assert all("tokens/s" in text for text in recorder.texts)


def children(pid: int) -> list[int]:
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="tells processes by /proc")
def test_a_run_killed_at_once_goes_on_where_it_was(data, whole, tmp_path):
    folder = tmp_path / "run" / "data"
    code = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); import slow_blocks;"
        " slow_blocks.main(*sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, data.corpus, str(folder)], stdout=subprocess.PIPE, text=True
    )
    rows = partial(folder) / "rows-32"
    try:
        while len(list(rows.glob("block-*.json"))) < 2 or len(list(rows.glob(".half*"))) < 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        # The resource tracker of multiprocessing is a child too.
        workers_there = [
            pid
            for pid in children(process.pid)
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        assert len(workers_there) == 2
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not folder.exists()
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() and "Z" not in _state(pid) for pid in workers_there):
        assert time.monotonic() < until, "a worker outlived the process that started it"
        time.sleep(0.05)
    lines = []
    prepare(data, folder, lines.append, workers=1)
    assert contents(folder) == whole
    assert "after 2 of an earlier process" in lines[0], "nor was the vocabulary trained again"
    assert list(folder.parent.iterdir()) == [folder]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_a_killed_worker_is_one_clear_error(data, whole, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    import slow_blocks

    with monkeypatch.context() as patch:
        patch.setattr(workers, "_task", slow_blocks.killed)
        with pytest.raises(
            RowsError, match=r"a process that prepared data was killed.*--workers, now 2"
        ):
            prepare(data, tmp_path / "data", workers=2)
    prepare(data, tmp_path / "data", workers=1)
    assert contents(tmp_path / "data") == whole


def flip(folder: Path, pattern: str) -> None:
    file = next(folder.glob(pattern))
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)


DAMAGE = {
    "nothing": (lambda folder: None, 3),
    "flipped byte": (lambda folder: flip(folder, "train-00001-of-*.arrayrecord"), 2),
    "missing shard": (lambda folder: next(folder.glob("train-00000-of-*.arrayrecord")).unlink(), 2),
    "other sketches": (lambda folder: flip(folder, "train-00002.sketches.npy"), 2),
    "half a record": (lambda folder: next(folder.glob("block-00001-of-*.json")).write_text("{"), 2),
    "other tokenizer": (lambda folder: forge(folder, tokenizer="0123456789abcdef"), 2),
}


def forge(folder: Path, **changes) -> None:
    about = next(folder.glob("block-00000-of-*.json"))
    about.write_text(json.dumps(json.loads(about.read_text()) | changes))


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_was_done_is_checked_before_it_is_kept(data, whole, tmp_path, monkeypatch, damage):
    harm, kept = DAMAGE[damage]
    folder = tmp_path / "run" / "data"
    stop_after(monkeypatch, 3, data, folder)
    harm(partial(folder) / "rows-32")
    lines = []
    prepare(data, folder, lines.append, workers=1)
    assert f"after {kept} of an earlier process" in lines[0]
    assert contents(folder) == whole


@pytest.mark.parametrize(("which", "kept"), [("first", 2), ("last", 3)])
def test_a_block_that_changed_between_two_runs_is_done_again(
    data, tmp_path, monkeypatch, which, kept
):
    folder, corpus = tmp_path / "run" / "data", Path(data.corpus)
    stop_after(monkeypatch, 3, data, folder)
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    # A held-out text of the same length, so that vocabulary and blocks stay.
    held_out = [i for i, text in enumerate(texts) if is_validation(text, 0.25)]
    changed = held_out[0 if which == "first" else -1]
    variants = (texts[changed].replace("e", other, 1) for other in "abcdfghijklmnopqrstuvwxyz")
    texts[changed] = next(text for text in variants if is_validation(text, 0.25))
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    lines = []
    prepare(data, folder, lines.append, workers=1)
    assert f"after {kept} of an earlier process" in lines[-3]
    prepare(data, tmp_path / "anew", workers=1)
    assert contents(folder) == contents(tmp_path / "anew")


def test_a_disk_that_refuses_leaves_nothing_half(data, whole, tmp_path, monkeypatch):
    folder = tmp_path / "run" / "data"
    do = workers.done_or_do
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(work, number, **more):
        if number == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        return do(work, number, **more)

    with monkeypatch.context() as patch:
        patch.setattr(workers, "done_or_do", full)
        try:
            with pytest.raises(OSError, match=r"File too large: '.*-00002-of-\d+\.arrayrecord'$"):
                prepare(data, folder, workers=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not folder.exists()
    names = [file.name for file in partial(folder).rglob("*") if file.is_file()]
    assert not [name for name in names if name.endswith(".tmp") or "-00002" in name]
    prepare(data, folder, workers=1)
    assert contents(folder) == whole


def test_a_place_that_cannot_be_written(data, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="file"):
        prepare(data, tmp_path / "file" / "data")


def test_a_damaged_document_is_named_or_left_out(data, tmp_path, tokenizer):
    file = Path(data.corpus)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:40], '{"text": "half\n', *lines[40:]]))
    tokenizer.save(tmp_path / "tokenizer.model")
    # Met while the vocabulary is trained, and by a worker.
    for own in ("", str(tmp_path / "tokenizer.model")):
        with pytest.raises(CorpusError, match=r"stories\.jsonl:41: not JSON"):
            prepare(Data(**{**vars(data), "tokenizer": own}), tmp_path / "data", workers=2)
        assert not (tmp_path / "data").exists()
        # None is still writing into the folder that the next call may empty.
        assert not multiprocessing.active_children()
    said = []
    tolerant = Data(**{**vars(data), "skip_damaged": True})
    prepared = prepare(tolerant, tmp_path / "data", said.append, workers=2)
    assert (prepared.info["skipped"], prepared.info["documents"]) == ({"not JSON": 1}, 60)
    (error,) = prepared.info["damaged"]
    assert error.startswith(f"{file}:41: not JSON")
    assert any("skipped 1 damaged document (1 not JSON)" in line for line in said)
    with pytest.raises(RowsError, match=r"config\.data\.skip_damaged=True, not False"):
        prepare(data, tmp_path / "data")


def test_damage_after_the_fact_is_named(data, tmp_path):
    folder = tmp_path / "data"
    prepare(data, folder, workers=1)
    rows = prepare(data, folder).train
    file = next((folder / "rows-32").glob("train-00000-of-*.arrayrecord"))
    raw = bytearray(file.read_bytes())
    raw[raw.find(rows[2].astype("<u2").tobytes())] ^= 1
    file.write_bytes(raw)
    rows = prepare(data, folder).train
    with pytest.raises(RowsError, match=r"train-00000-of-\d+\.arrayrecord: record 2 cannot"):
        rows.read(range(len(rows)))
    next((folder / "rows-32").glob("validation-00002-of-*")).unlink()
    with pytest.raises(RowsError, match=r"validation-00002-of-\d+\.arrayrecord: no such file"):
        prepare(data, folder)


def test_another_row_length_of_many_blocks(data, tmp_path):
    folder = tmp_path / "data"
    prepare(data, folder, workers=1)
    before = contents(folder)
    longer = prepare(Data(**{**vars(data), "sequence_length": 48}), folder, workers=2)
    assert longer.train.row_tokens == 48
    assert before.items() <= contents(folder).items()
    assert not list(folder.glob(".*"))


def test_the_corpus_in_another_place_is_the_same(data, tmp_path):
    prepare(data, tmp_path / "data", workers=1)
    before = contents(tmp_path / "data")
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes(Path(data.corpus).read_bytes())
    prepare(Data(**{**vars(data), "corpus": str(moved)}), tmp_path / "data")
    assert contents(tmp_path / "data") == before


def test_folders_of_the_first_format_are_read(data, tmp_path, monkeypatch):
    """One shard, fewer keys, and a fingerprint that knows no blocks."""
    folder = tmp_path / "data"
    with monkeypatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", 10**9)
        before = prepare(data, folder)
        rows = before.train.read(range(len(before.train)))
    old = json.loads((folder / "prepared.json").read_text())
    new = ("tokenizer_from", "rows", "skip_damaged", "blocks", "skipped", "near_duplicates")
    for key in (*new, "damaged", "sha256"):
        del old[key]
    old |= {"format": 1, "corpus_stamp": old["corpus_stamp"][0]}
    (folder / "prepared.json").write_text(json.dumps(old))
    for split in SPLITS:
        about = json.loads((folder / "rows-32" / f"{split}.json").read_text())
        for key in ("padding", "mode", "side", "sha256"):
            del about[key]
        for file in about["files"].values():
            del file["rows"]
        (folder / "rows-32" / f"{split}.json").write_text(json.dumps(about | {"format": 1}))
    again = prepare(data, folder)
    np.testing.assert_array_equal(again.train.read(range(len(rows))), rows)
    assert (again.info["rows"], again.info["train"]["padding"]) == ("packed", 0)
    # Read again, in many blocks, the text has the fingerprint that it had.
    os.utime(data.corpus, (1, 1))
    prepare(data, folder)
    assert (
        len(prepare(Data(**{**vars(data), "sequence_length": 48}), folder).train.info["files"]) > 2
    )
    with pytest.raises(RowsError, match=r"config\.data\.packing=packed, not first_n"):
        prepare(Data(**{**vars(data), "packing": "first_n"}), folder)
    Path(data.corpus).write_text('{"text": "other"}\n' * 9)
    with pytest.raises(RowsError, match=r"60 documents.*9 and"):
        prepare(data, folder)


def test_blocks_grow_with_the_corpus(monkeypatch):
    class Source:
        def mtime_signature(self):
            return [["a", 4_000_000, 1], ["b", 6_000_000, 1], ["version"]]

        def blocks(self, size):
            return [size]

    monkeypatch.setattr(blocks, "BLOCK_BYTES", 8000)
    assert blocks.split_blocks(Source()) == (10_000_000 // blocks.MOST_BLOCKS,)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 80_000)
    assert blocks.split_blocks(Source()) == (80_000,)


def test_no_jax_in_what_workers_import():
    code = (
        "import sys, memjax.data, memjax.data.workers; sys.exit('jax' in sys.modules or 'grain'"
        " in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
