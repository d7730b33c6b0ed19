"""Memories of rows on disk: what is written is read, batches hold it, and what is not of these rows
or this encoder is refused.

Shapes: C chunk, K vector, E width.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from memjax.data import (
    MemoriesError,
    MemoryShards,
    TrainBatches,
    memories,
    open_memories,
    open_rows,
)
from memjax.files import sealed, write_json

SHAPE = (2, 3, 5)
SETTINGS = {"chunk_length": 2, "encoder": {"kind": "mixer", "heads": 2}, "compat": []}
ENCODER = {
    "checkpoint": "/runs/a/stages/autoencoder",
    "step": 8,
    "settings": SETTINGS,
    "sha256": "ab" * 32,
}


def memories_of(count: int, dtype: str = "float32") -> np.ndarray:
    """[count, C, K, E]; the first number of row i is about i."""
    noise = np.random.default_rng(0).normal(0, 0.1, (count, *SHAPE))
    noise[:, 0, 0, 0] = 0
    return (np.arange(count)[:, None, None, None] + noise).astype(jnp.dtype(dtype))


def begin(folder, rows, dtype="float32", **encoder):
    return MemoryShards.begin(folder, "train", rows, SHAPE, dtype, ENCODER | encoder)


def write(folder, rows, stored):
    """Write the shards of these memories that are missing, and return the manifest."""
    shards = begin(folder, rows, stored[0].dtype.name)
    for number in shards.todo():
        shards.write(number, (stored[row] for row in shards.rows(number)))
    shards.finish({key: x for n in range(shards.count) for key, x in shards.entry(n).items()})
    return open_memories(folder, "train").info


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def written(tmp_path, numbered_rows):
    return tmp_path, write(tmp_path, numbered_rows, memories_of(37))


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of ten rows, of four tokens each."""
    monkeypatch.setattr(memories, "SHARD_TOKENS", 40)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_what_is_written_is_read(tmp_path, numbered_rows, dtype, size, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    stored = memories_of(37, dtype)
    info = write(tmp_path, numbered_rows, stored)
    memories = open_memories(f"~/{tmp_path.name}", "train")
    assert (len(memories), memories.shape, memories.dtype.name) == (37, SHAPE, dtype)
    for index in (0, 17, 36, -1):
        assert memories[index].dtype == stored.dtype
        assert memories[index].tobytes() == stored[index].tobytes()
    assert memories[0].nbytes == 30 * size
    with pytest.raises(IndexError):
        memories[37]
    assert memories.info == info
    assert info["shape"] == [2, 3, 5] and info["dtype"] == dtype and info["encoder"] == ENCODER
    assert info["of"] == {
        "tokenizer": numbered_rows.info["fingerprint"],
        "row_tokens": 4,
        "rows": 37,
        "sha256": [numbered_rows.info["files"]["train-00000-of-00001.arrayrecord"]["sha256"]],
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memories_come_with_their_rows(tmp_path, numbered_rows, dtype):
    write(tmp_path, numbered_rows, memories_of(37, dtype))
    batches = TrainBatches(numbered_rows, 5, seed=1, memories=open_memories(tmp_path, "train"))
    plain = TrainBatches(numbered_rows, 5, seed=1)
    for step, batch in zip((9, 10), batches.from_step(9, threads=2), strict=False):
        np.testing.assert_array_equal(batch["tokens"], plain.batch(step)["tokens"])
        assert batch["memories"].dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(
            batch["memories"], memories_of(37, dtype)[batch["tokens"][:, 0]]
        )
        np.testing.assert_array_equal(batch["memories"], batches.batch(step)["memories"])


# What is not whole


def test_work_that_is_cut_short_is_completed_and_is_the_same(tmp_path, numbered_rows, small_shards):
    stored, folder, whole = memories_of(37), tmp_path / "m", tmp_path / "whole"
    info = write(whole, numbered_rows, stored)
    assert len(info["files"]) == 4 and list(info["files"]) == sorted(info["files"])

    def killed():
        yield from stored[10:15]
        raise KeyboardInterrupt

    shards = begin(folder, numbered_rows)
    shards.write(2, stored[20:30])
    with pytest.raises(KeyboardInterrupt):
        shards.write(1, killed())
    with pytest.raises(MemoriesError, match=r"train\.json: no such file.*`memjax compress`"):
        open_memories(folder, "train")
    assert begin(folder, numbered_rows).todo() == [0, 1, 3]
    write(folder, numbered_rows, stored)
    assert files_of(folder) == files_of(whole)
    found = open_memories(folder, "train")
    assert found.read([36, 0, 9, 10]).tobytes() == stored[[36, 0, 9, 10]].tobytes()


def test_work_of_something_else_is_not_completed(tmp_path, numbered_rows, small_shards):
    begin(tmp_path, numbered_rows).write(1, memories_of(37)[10:20])
    before = files_of(tmp_path)
    for changes, key in (({"sha256": "cd" * 32}, "encoder"), ({"dtype": "bfloat16"}, "dtype")):
        with pytest.raises(
            MemoriesError,
            match=rf"train\.unfinished\.json: train memories with another {key} are being written,"
            r" expected those of this command\. Run the command that began, or delete",
        ):
            begin(tmp_path, numbered_rows, **changes)
    assert files_of(tmp_path) == before
    (tmp_path / "train.unfinished.json").unlink()
    assert begin(tmp_path, numbered_rows, "bfloat16").todo() == [0, 1, 2, 3]


def test_no_more_shards_than_files_that_stay_open(tmp_path, numbered_rows, monkeypatch):
    monkeypatch.setattr(memories, "SHARD_TOKENS", 1)
    monkeypatch.setattr(memories, "MOST_SHARDS", 5)
    shards = begin(tmp_path, numbered_rows)
    assert [len(shards.rows(number)) for number in range(shards.count)] == [8, 8, 8, 8, 5]


@pytest.mark.parametrize("count", [36, 38])
def test_there_must_be_memories_of_every_row(tmp_path, numbered_rows, count):
    with pytest.raises(
        MemoriesError, match=rf"{count} memories of shapes .* were given for 37 rows, expected 37"
    ):
        begin(tmp_path, numbered_rows).write(0, memories_of(count))
    assert begin(tmp_path, numbered_rows).todo() == [0]


def test_all_rows_have_memories_of_one_shape(tmp_path, numbered_rows):
    mixed = [*memories_of(36), memories_of(1)[0].astype(np.float64)]
    with pytest.raises(MemoriesError, match=r"float32'\), .*float64'\)\] were given for 37 rows"):
        begin(tmp_path, numbered_rows).write(0, mixed)


def test_a_split_that_is_there_is_not_written_over(written, numbered_rows):
    folder, _ = written
    before = files_of(folder)
    with pytest.raises(MemoriesError, match=r"train\.json: train memories exist, expected none"):
        begin(folder, numbered_rows)
    assert files_of(folder) == before


def cut_shard(folder):
    shard = folder / "train-00000-of-00001.arrayrecord"
    shard.write_bytes(shard.read_bytes()[:-1000])


def fill_with_zeros(folder):
    shard = folder / "train-00000-of-00001.arrayrecord"
    shard.write_bytes(bytes(shard.stat().st_size))


def rewrite(**changes):
    def damage(folder):
        about = folder / "train.json"
        write_json(about, sealed(json.loads(about.read_text()) | changes))

    return damage


DAMAGE = {
    "truncated": (
        cut_shard,
        r"train-00000-of-00001\.arrayrecord: \d+ bytes, expected \d+",
    ),
    "no shard": (
        lambda f: (f / "train-00000-of-00001.arrayrecord").unlink(),
        r"arrayrecord: no such file",
    ),
    "zeros": (fill_with_zeros, r"unreadable|expected \d+ by"),
    "no description": (lambda f: (f / "train.json").unlink(), r"train\.json: no such file"),
    "half a description": (
        lambda f: (f / "train.json").write_text('{"of": '),
        r"train\.json: no JSON",
    ),
    "another description": (
        lambda f: (f / "train.json").write_text("[]"),
        r"train\.json: \[\], expected an object",
    ),
    "future format": (rewrite(format=99), r"format: 99, expected 1"),
    "no dtype of ours": (rewrite(dtype="float1"), r"dtype: 'float1', expected 'bfloat16' or"),
    "miscounted": (
        rewrite(of={"tokenizer": "", "row_tokens": 4, "rows": 3, "sha256": []}),
        r"37 train memories, expected 3 by train\.json",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_with_its_remedy(written, damage):
    folder, _ = written
    harm, message = DAMAGE[damage]
    harm(folder)
    with pytest.raises(MemoriesError, match=message) as caught:
        open_memories(folder, "train")
    assert str(folder) in str(caught.value)
    assert "Write them again with `memjax compress`" in str(caught.value)


def test_a_record_of_another_size_is_named(written):
    folder, _ = written
    rewrite(shape=[2, 3, 4])(folder)
    with pytest.raises(MemoriesError, match=r"the train memories of row 5 cannot be read"):
        open_memories(folder, "train")[5]


def test_a_flipped_byte_fails_the_checksum_of_its_row(written):
    folder, _ = written
    shard = folder / "train-00000-of-00001.arrayrecord"
    contents = bytearray(shard.read_bytes())
    contents[contents.find(memories_of(37)[5].tobytes()) + 1] ^= 1
    shard.write_bytes(contents)
    memories = open_memories(folder, "train")
    with pytest.raises(MemoriesError, match=r"arrayrecord: record 5 cannot be read"):
        memories.read([4, 5])


# What is of something else


@pytest.mark.parametrize(
    ("rows", "row_tokens", "message"),
    [
        (36, 4, "number 37 there, 36 here"),
        (37, 2, "row length 4 there, 2 here"),
        (37, 4, r"sha256 \['[0-9a-f]{64}'\] there, \['[0-9a-f]{64}'\] here"),
    ],
)
def test_memories_of_other_rows_are_refused(
    written, tmp_path_factory, tokenizer, write_rows, rows, row_tokens, message
):
    folder, _ = written
    elsewhere = tmp_path_factory.mktemp("other")
    write_rows(elsewhere, "train", [np.arange(rows * row_tokens) % 300], row_tokens, tokenizer)
    other = open_rows(elsewhere, "train", tokenizer.fingerprint)
    with pytest.raises(
        MemoriesError,
        match=f"the train memories are of other rows than those in {elsewhere}: {message}",
    ):
        TrainBatches(other, 2, seed=0, memories=open_memories(folder, "train"))


def test_memories_of_another_tokenizer_are_refused(written, numbered_rows):
    folder, info = written
    rewrite(of=info["of"] | {"tokenizer": "0123456789abcdef"})(folder)
    ours = numbered_rows.info["fingerprint"]
    with pytest.raises(
        MemoriesError, match=f"other rows .*: tokenizer 0123456789abcdef there, {ours} here"
    ):
        open_memories(folder, "train").check_rows(numbered_rows)


@pytest.mark.parametrize(
    ("changes", "sha256", "shape", "message"),
    [
        (
            {"chunk_length": 4},
            "ab" * 32,
            SHAPE,
            r"config\.model\.chunk_length=2, this run has config\.model\.chunk_length=4",
        ),
        (
            {"encoder": {"kind": "mixer", "heads": 4}},
            "ab" * 32,
            SHAPE,
            r"config\.model\.encoder=.*'heads': 2.*'heads': 4",
        ),
        (
            {"compat": ["residual_noise"]},
            "ab" * 32,
            SHAPE,
            r"config\.model\.compat=\[\], this run has .*residual_noise",
        ),
        (
            {},
            "ab" * 32,
            (2, 1, 5),
            r"of shape \(2, 3, 5\) \(chunks, vectors, width\), this run's of \(2, 1, 5\)",
        ),
        (
            {},
            "ab" * 32,
            (2, 3, 6),
            r"of shape \(2, 3, 5\) \(chunks, vectors, width\), this run's of \(2, 3, 6\)",
        ),
        (
            {},
            "cd" * 32,
            SHAPE,
            r"/runs/a/stages/autoencoder, step 8 \(sha256 a(ba){7}b\).* another \(sha256"
            r" c(dc){7}d\)",
        ),
    ],
)
def test_memories_of_another_encoder_are_refused(written, changes, sha256, shape, message):
    memories = open_memories(written[0], "train")
    memories.check_encoder(SETTINGS, "ab" * 32, SHAPE)
    with pytest.raises(MemoriesError, match=message):
        memories.check_encoder(SETTINGS | changes, sha256, shape)
