import itertools
import json

import numpy as np
import pytest

from memjax.data import RowsError, open_rows, pack
from memjax.files import sealed, write_json


def arrays(*lengths: int) -> list[np.ndarray]:
    """Documents of those lengths, ids counting up from 10 through all of them."""
    starts = itertools.accumulate(lengths, initial=10)
    return [
        np.arange(start, start + length, dtype=np.int32)
        for start, length in zip(starts, lengths, strict=False)
    ]


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
    with pytest.raises(RowsError, match=r"vocabulary of 65536\. Set config\.data\.vocab_size"):
        list(pack([np.array([1, wrong], np.int32)], 2, 3))
    assert next(pack([np.array([65535])], 1, 3)).tolist() == [65535]


def test_a_large_vocabulary_takes_32_bits(tmp_path, write_rows):
    class Large:
        vocabulary, eos_id, pad_id, fingerprint, byte_lengths = (
            128_256,
            3,
            0,
            "large",
            np.ones(128_256, int),
        )

    write_rows(tmp_path, "train", [np.array([1, 65535, 65536, 128_255])], 2, Large())
    rows = open_rows(tmp_path, "train", "large")
    assert [rows[i].tolist() for i in (0, 1)] == [[1, 65535], [65536, 128_255]]


@pytest.fixture
def written(tmp_path, tokenizer, stories, write_rows):
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


def flip(file, before):
    """Change the lowest bit of the digit behind some bytes of a file."""
    contents = bytearray(file.read_bytes())
    contents[contents.index(before) + len(before)] ^= 1
    file.write_bytes(contents)


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
        lambda f: (f / "train.json").write_text('{"rows": '),
        r"train\.json: no JSON",
    ),
    "another description": (
        lambda f: (f / "train.json").write_text("[]"),
        r"train\.json: \[\], expected an object",
    ),
    "future format": (rewrite(format=99), r"format: 99, expected 1 or 2"),
    "miscounted": (rewrite(rows=3), r"train\.json: tokens and padding \d+, expected 96"),
    "more tokens than rows hold": (
        rewrite(tokens=2**31),
        r"padding 2147483648, expected \d+",
    ),
    "a file outside": (
        rewrite(files={"../up": {"bytes": 1, "sha256": ""}}),
        r"file '\.\./up', expected one beside it",
    ),
    "a part outside": (
        rewrite(parts=[{"folder": "..", "weight": 1}]),
        r"file '\.\.', expected one beside it",
    ),
    "a changed number": (
        lambda f: (rewrite()(f), flip(f / "train.json", b'"bytes": ')),
        r"train\.json: not what was written",
    ),
    "more padding": (rewrite(padding=1), r"train\.json: tokens and padding \d+, expected \d+"),
    "a list": (rewrite(bytes=[7]), r"train\.json: bytes: \[7\], expected a whole number"),
    "a fraction": (rewrite(tokens=7.5), r"train\.json: tokens: 7\.5, expected a whole number"),
    "a truth value": (rewrite(rows=True), r"train\.json: rows: True, expected a whole number"),
    "less than none": (rewrite(bytes=-1), r"train\.json: bytes: -1, expected a whole number"),
    "another mode": (rewrite(mode="firstn"), r"train\.json: mode: 'firstn', expected 'packed' or"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_with_its_remedy(written, tokenizer, damage):
    folder, *_ = written
    harm, message = DAMAGE[damage]
    harm(folder)
    with pytest.raises(RowsError, match=message) as caught:
        open_rows(folder, "train", tokenizer.fingerprint)
    assert str(folder) in str(caught.value)
    assert "Delete the folder so that it is built again" in str(caught.value)


def test_rows_of_another_tokenizer(written, tokenizer):
    with pytest.raises(
        RowsError,
        match=f"tokenizer {tokenizer.fingerprint}, expected the one in use, 0123456789abcdef",
    ):
        open_rows(written[0], "train", "0123456789abcdef")


def test_a_flipped_byte_fails_the_checksum_of_its_row(written, tokenizer):
    shard = written[0] / "train-00000-of-00001.arrayrecord"
    rows = open_rows(written[0], "train", tokenizer.fingerprint)
    contents = bytearray(shard.read_bytes())
    contents[contents.find(rows[3].astype("<u2").tobytes()) + 1] ^= 1
    shard.write_bytes(contents)
    rows = open_rows(written[0], "train", tokenizer.fingerprint)
    with pytest.raises(RowsError, match=r"arrayrecord: record 3 cannot be read"):
        rows.read(range(len(rows)))


def test_counts_without_a_checksum_are_compared_too(written, tokenizer):
    """As those of earlier versions, which had none."""
    folder, *_ = written
    info = json.loads((folder / "train.json").read_text())
    del info["sha256"]
    (folder / "train.json").write_text(json.dumps(info))
    assert len(open_rows(folder, "train", tokenizer.fingerprint)) == info["rows"]
    (file,) = info["files"]
    info["files"][file]["rows"] += 1
    (folder / "train.json").write_text(json.dumps(info))
    with pytest.raises(RowsError, match=r"rows of its files \d+, expected \d+"):
        open_rows(folder, "train", tokenizer.fingerprint)


def test_a_folder_may_have_any_name(tmp_path, tokenizer, write_rows):
    folder = tmp_path / "a[1]*?{b,c}@2 100% ü\n~$x"
    folder.mkdir()
    write_rows(folder, "train", [np.arange(20, dtype=np.int32)], 4, tokenizer)
    rows = open_rows(folder, "train", tokenizer.fingerprint)
    assert rows.read([4, 0]).tolist() == [[16, 17, 18, 19], [0, 1, 2, 3]]
