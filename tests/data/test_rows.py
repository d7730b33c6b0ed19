import itertools
import json

import numpy as np
import pytest

from memjax.data import RowsError, open_rows, pack, write_rows


def arrays(*lengths: int) -> list[np.ndarray]:
    """Documents of those lengths, ids counting up from 10 through all of them."""
    starts = itertools.accumulate(lengths, initial=10)
    return [np.arange(start, start + length, dtype=np.int32) for start, length in zip(starts, lengths, strict=False)]


@pytest.mark.parametrize("lengths", [(7,), (3, 1, 9), (1, 1, 1, 1, 1, 1), (0, 8, 0, 20), (64,)])
@pytest.mark.parametrize("row_tokens", [1, 4, 5])
def test_rows_are_the_documents_joined_by_eos(lengths, row_tokens):
    joined = list(itertools.chain.from_iterable([3, *array] for array in arrays(*lengths)))[1:]
    rows = list(pack(arrays(*lengths), row_tokens, eos_id=3))
    assert len(rows) == len(joined) // row_tokens
    assert all(row.dtype == np.uint16 and row.shape == (row_tokens,) for row in rows)
    assert [int(i) for row in rows for i in row] == joined[: len(rows) * row_tokens]


@pytest.mark.parametrize("wrong", [65536, -1])
def test_ids_beyond_the_vocabulary_are_refused(wrong):
    with pytest.raises(RowsError, match=r"vocabulary of 65536; config\.data\.vocabulary"):
        list(pack([np.array([1, wrong], np.int32)], 2, 3))
    assert next(pack([np.array([65535])], 1, 3)).tolist() == [65535]


def test_a_large_vocabulary_takes_32_bits(tmp_path):
    class Large:
        vocabulary, eos_id, pad_id, fingerprint, byte_lengths = 128_256, 3, 0, "large", np.ones(128_256, int)

    write_rows(tmp_path, "train", [np.array([1, 65535, 65536, 128_255])], 2, Large())
    rows = open_rows(tmp_path, "train", "large")
    assert [rows[i].tolist() for i in (0, 1)] == [[1, 65535], [65536, 128_255]]


@pytest.fixture
def written(tmp_path, tokenizer, stories):
    encoded = tokenizer.encode_batch(stories)
    return tmp_path, encoded, write_rows(tmp_path, "train", encoded, 32, tokenizer)


def test_what_is_written_is_read(written, tokenizer):
    folder, encoded, info = written
    rows = open_rows(folder, "train", tokenizer.fingerprint)
    assert rows.info == info
    assert len(rows) == info["rows"] > 8
    expected = list(pack(encoded, 32, tokenizer.eos_id))
    for index in (0, 5, len(rows) - 1, -1):
        assert rows[index].dtype == np.int32
        np.testing.assert_array_equal(rows[index], expected[index])
    with pytest.raises(IndexError):
        rows[len(rows)]
    rows.verify()


def test_counts_add_up(written, stories, tokenizer):
    folder, encoded, info = written
    rows = open_rows(folder, "train", tokenizer.fingerprint)
    assert info["documents"] == len(stories)
    assert info["tokens"] == 32 * len(rows)
    assert info["tokens"] + info["dropped_tokens"] == sum(map(len, encoded)) + len(stories) - 1
    assert 0 <= info["dropped_tokens"] < 32
    text = tokenizer.decode(np.concatenate([rows[i] for i in range(len(rows))]))
    assert info["bytes"] == len(text.encode())
    assert "".join(stories).startswith(text)


def cut_shard(folder):
    shard = folder / "train-00000-of-00001.arrayrecord"
    shard.write_bytes(shard.read_bytes()[:-1000])


def fill_with_zeros(folder):
    shard = folder / "train-00000-of-00001.arrayrecord"
    shard.write_bytes(bytes(shard.stat().st_size))


def rewrite(**changes):
    def damage(folder):
        about = folder / "train.json"
        about.write_text(json.dumps(json.loads(about.read_text()) | changes))

    return damage


DAMAGE = {
    "truncated": (cut_shard, r"train-00000-of-00001\.arrayrecord: holds \d+ bytes, where \d+ bytes were written"),
    "no shard": (lambda f: (f / "train-00000-of-00001.arrayrecord").unlink(), r"arrayrecord: no such file"),
    "zeros": (fill_with_zeros, r"unreadable|are stored"),
    "no description": (lambda f: (f / "train.json").unlink(), r"train\.json: no such file"),
    "half a description": (lambda f: (f / "train.json").write_text('{"rows": '), r"train\.json: does not describe rows"),
    "another description": (lambda f: (f / "train.json").write_text("[]"), r"train\.json: does not describe rows"),
    "future format": (rewrite(format=99), r"format 99"),
    "miscounted": (rewrite(rows=3), r"train\.json counts 3"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_with_its_remedy(written, tokenizer, damage):
    folder, *_ = written
    harm, message = DAMAGE[damage]
    harm(folder)
    with pytest.raises(RowsError, match=message) as caught:
        open_rows(folder, "train", tokenizer.fingerprint)
    assert str(folder) in str(caught.value)
    assert "delete the folder so that it is built again" in str(caught.value)


def test_rows_of_another_tokenizer(written, tokenizer):
    with pytest.raises(RowsError, match=f"made by tokenizer {tokenizer.fingerprint}, while the one in use is 0123456789abcdef"):
        open_rows(written[0], "train", "0123456789abcdef")


def test_a_flipped_byte_fails_the_checksum(written, tokenizer):
    shard = written[0] / "train-00000-of-00001.arrayrecord"
    rows = open_rows(written[0], "train", tokenizer.fingerprint)
    contents = bytearray(shard.read_bytes())
    contents[-1] ^= 1
    shard.write_bytes(contents)
    with pytest.raises(RowsError, match=r"arrayrecord: the contents are not those that were written"):
        rows.verify()
