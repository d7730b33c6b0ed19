"""Every way from documents to rows, against rows written down by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memjax.data import MixedRows, RowsError, document_ids, open_rows
from memjax.data.packing import Layout, RowMaker
from memjax.data.rows import describe_mixture

EOS, PAD = 3, 0
DOCUMENTS = [np.arange(10, 17), np.array([17]), np.arange(18, 26)]
"""7, 1 and 8 tokens, 10 to 25."""
EXPECTED = {
    ("packed", "right"): (
        [[10, 11, 12, 13], [14, 15, 16, 3], [17, 3, 18, 19], [20, 21, 22, 23]],
        {"tokens": 16, "padding": 0, "dropped": 2},
    ),
    ("per_document", "right"): (
        [[10, 11, 12, 13], [14, 15, 16, 0], [17, 0, 0, 0], [18, 19, 20, 21], [22, 23, 24, 25]],
        {"tokens": 16, "padding": 4, "dropped": 0},
    ),
    ("per_document", "left"): (
        [[10, 11, 12, 13], [0, 14, 15, 16], [0, 0, 0, 17], [18, 19, 20, 21], [22, 23, 24, 25]],
        {"tokens": 16, "padding": 4, "dropped": 0},
    ),
    ("first_n", "right"): (
        [[10, 11, 12, 13], [17, 0, 0, 0], [18, 19, 20, 21]],
        {"tokens": 9, "padding": 3, "dropped": 7},
    ),
    ("first_n", "left"): (
        [[10, 11, 12, 13], [0, 0, 0, 17], [18, 19, 20, 21]],
        {"tokens": 9, "padding": 3, "dropped": 7},
    ),
    ("full_length_only", "right"): (
        [[10, 11, 12, 13], [18, 19, 20, 21]],
        {"tokens": 8, "padding": 0, "dropped": 8},
    ),
}


@pytest.mark.parametrize(("mode", "padding"), EXPECTED)
@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_rows_of_each_mode(mode, padding, at_once):
    maker = RowMaker(Layout(4, mode, padding), EOS, PAD, 30)
    rows = [maker.add(DOCUMENTS[start : start + at_once]) for start in range(0, 3, at_once)]
    expected, counts = EXPECTED[mode, padding]
    assert np.concatenate(rows).tolist() == expected
    assert {key: getattr(maker, key) for key in counts} == counts
    assert (maker.rows, maker.documents) == (len(expected), 3)
    assert all(some.dtype == np.uint16 for some in rows)


@pytest.mark.parametrize("mode", ["packed", "first_n"])
def test_an_id_above_the_vocabulary_is_refused_in_every_mode(mode):
    with pytest.raises(RowsError, match=r"ids 4 to 30 .* vocabulary of 30"):
        RowMaker(Layout(4, mode), EOS, PAD, 30).add([np.array([4, 5]), np.array([30])])


def test_padding_is_recorded_and_holds_no_bytes(tmp_path, tokenizer, stories, write_rows):
    encoded = tokenizer.encode_batch(stories[:5])
    info = write_rows(tmp_path, "train", encoded, 64, tokenizer, "per_document", "left")
    rows = open_rows(tmp_path, "train", tokenizer.fingerprint)
    stored = rows.read(range(len(rows)))
    assert info["tokens"] == sum(map(len, encoded)) == (stored != tokenizer.pad_id).sum()
    assert info["tokens"] + info["padding"] == stored.size
    assert info["bytes"] == sum(len(story.encode()) for story in stories[:5])
    assert (info["mode"], info["side"]) == ("per_document", "left")


def test_document_ids_count_the_separators_before():
    tokens = np.array([[10, 11, EOS, 12, 13, EOS], [EOS, EOS, 14, 15, EOS, 16]])
    expected = [[0, 0, 0, 1, 1, 1], [0, 1, 2, 2, 2, 3]]
    found = document_ids(tokens, EOS)
    assert found.dtype == np.int32
    assert found.tolist() == expected
    assert document_ids(tokens.astype(np.uint16), EOS).tolist() == expected
    traced = jax.jit(document_ids)(jnp.asarray(tokens), EOS)
    assert traced.dtype == jnp.int32
    assert traced.tolist() == expected
    assert document_ids(tokens.reshape(2, 2, 3), EOS).tolist() == [
        [[0, 0, 0], [0, 0, 0]],
        [[0, 1, 2], [0, 0, 1]],
    ]


@pytest.fixture
def mixed(tmp_path, tokenizer, write_rows) -> MixedRows:
    """Two rows of 100s and three of 200s."""
    infos = {}
    for part, (rows, value) in enumerate([(2, 100), (3, 200)]):
        folder = tmp_path / f"part-{part}"
        folder.mkdir()
        infos[folder.name] = write_rows(
            folder, "train", [value + np.arange(rows * 4)], 4, tokenizer
        )
    (tmp_path / "train.json").write_text(
        str(describe_mixture(infos, [0.75, 0.25])).replace("'", '"')
    )
    return open_rows(tmp_path, "train", tokenizer.fingerprint)


def test_rows_of_a_mixture_are_those_of_its_parts(mixed):
    assert isinstance(mixed, MixedRows)
    assert (len(mixed), mixed.weights, [len(part) for part in mixed.parts]) == (
        5,
        (0.75, 0.25),
        [2, 3],
    )
    everything = np.concatenate([100 + np.arange(8), 200 + np.arange(12)]).reshape(5, 4)
    np.testing.assert_array_equal(np.stack([mixed[i] for i in range(5)]), everything)
    np.testing.assert_array_equal(mixed.read([4, 0, 2, 1, 4]), everything[[4, 0, 2, 1, 4]])
    np.testing.assert_array_equal(mixed[-4], everything[1])
    assert mixed.read([]).shape == (0, 4)
    for read in (lambda: mixed[5], lambda: mixed[-6], lambda: mixed.read([0, 5])):
        with pytest.raises(IndexError):
            read()
    assert (mixed.info["rows"], mixed.info["tokens"]) == (5, 20)


def test_a_damaged_part_is_named(mixed, tokenizer):
    shard = mixed.folder / "part-1" / "train-00000-of-00001.arrayrecord"
    contents = bytearray(shard.read_bytes())
    contents[contents.find(mixed[4].astype("<u2").tobytes())] ^= 1
    shard.write_bytes(contents)
    mixed = open_rows(mixed.folder, "train", tokenizer.fingerprint)
    with pytest.raises(RowsError, match=r"part-1/train-00000-of-00001\.arrayrecord: record 2 "):
        mixed.read([4])
    shard.unlink()
    with pytest.raises(RowsError, match=r"part-1/train-00000-of-00001\.arrayrecord: no such file"):
        open_rows(mixed.folder, "train", tokenizer.fingerprint)
