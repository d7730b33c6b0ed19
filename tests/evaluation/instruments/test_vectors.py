"""Vectors and tokens come back from both kinds of file as they were, and what is damaged or of
another kind is refused."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from memjax.evaluation.instruments.vectors import (
    Vectors,
    VectorsError,
    VectorsInfo,
    check_alike,
    open_vectors,
    save_vectors,
)
from memjax.files import sealed

INFO = VectorsInfo("bert", 50, "abc", 0, 2, 6)


def make(texts=9, shape=(2, 3), length=5, info=INFO, dtype=np.float32, seed=0):
    generator = np.random.default_rng(seed)
    vectors = generator.normal(size=(texts, *shape)).astype(dtype)
    return Vectors(
        vectors, generator.integers(0, 50, (texts, length)).astype(np.int32), info, "made here"
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", ["a.npz", "new/a.arrayrecord"])
def test_what_is_saved_comes_back(tmp_path, name, dtype):
    made = make(dtype=dtype)
    save_vectors(tmp_path / name, made)
    found = open_vectors(tmp_path / name)
    assert (len(found), found.shape, found.length, found.vocabulary, found.info) == (
        9,
        (2, 3),
        5,
        50,
        INFO,
    )
    wanted = np.array([7, 0, 7, -1])
    vectors, tokens = found.take(wanted)
    assert (vectors.dtype, tokens.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(vectors, np.asarray(made.vectors)[wanted].astype(np.float32))
    np.testing.assert_array_equal(tokens, np.asarray(made.tokens)[wanted])
    np.testing.assert_array_equal(found.all_tokens(), made.tokens)
    part = found.part(3, 8)
    np.testing.assert_array_equal(part.take(np.array([0, 4]))[1], np.asarray(made.tokens)[[3, 7]])
    np.testing.assert_array_equal(part.part(1, 3).all_tokens(), np.asarray(made.tokens)[4:6])
    with pytest.raises(IndexError):
        part.take(np.array([5]))
    with pytest.raises(VectorsError, match="9 texts, expected texts 9 to 9"):
        found.part(9, 9)


def test_one_file_becomes_the_other(tmp_path):
    save_vectors(tmp_path / "a.arrayrecord", make())
    save_vectors(tmp_path / "a.npz", open_vectors(tmp_path / "a.arrayrecord"))
    np.testing.assert_array_equal(open_vectors(tmp_path / "a.npz").vectors, make().vectors)


def test_a_file_of_arrays_alone_is_enough(tmp_path):
    np.savez(
        tmp_path / "a.npz",
        vectors=np.ones((4, 3)),
        tokens=np.array([[1, 2], [3, 4], [5, 6], [7, 0]]),
    )
    found = open_vectors(tmp_path / "a.npz")
    assert (found.shape, found.vocabulary, found.info) == ((1, 3), 8, VectorsInfo())
    ids = found.info.ids
    assert ids.pad == -1 and ids.bos == 0, (
        "nothing is padding, and reading starts from the least id"
    )
    assert VectorsInfo(pad_id=0).ids.bos == 1
    assert VectorsInfo(pad_id=0, bos_id=2, first_content=6).ids.first_content == 6


WRONG = {
    "NaN": (
        lambda v, t: (np.where(np.arange(4)[:, None] == 2, np.nan, v), t),
        r"NaN or infinity in the vectors of 1 of 4 texts",
    ),
    "infinity": (
        lambda v, t: (v * 1e308 * 10.0 ** np.arange(4)[:, None], t),
        r"NaN or infinity in the vectors of 4 of 4 texts",
    ),
    "too few tokens": (
        lambda v, t: (v, t[:3]),
        r"vectors of 4 texts and tokens of 3, expected equal",
    ),
    "no texts": (lambda v, t: (v[:0], t[:0]), r"no texts, expected at least one"),
    "tokens of one axis": (lambda v, t: (v, t[:, 0]), r"vectors \[4, 1, 3\] and tokens \[4\]"),
    "integer vectors": (lambda v, t: (v.astype(int), t), r"vectors of int64 and tokens of int64"),
    "negative ids": (lambda v, t: (v, t - 5), r"ids -4 to 3, expected ids of the vocabulary"),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG.keys())
@pytest.mark.filterwarnings("ignore:overflow")
def test_arrays_that_cannot_be_probed_are_refused(tmp_path, change, message):
    vectors, tokens = change(np.ones((4, 3)), np.arange(1, 9).reshape(4, 2))
    np.savez(tmp_path / "a.npz", vectors=vectors, tokens=tokens)
    with pytest.raises(VectorsError, match=rf"a\.npz: .*{message}"):
        open_vectors(tmp_path / "a.npz")


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(VectorsError, match=r"a\.npz: no such file"):
        open_vectors(tmp_path / "a.npz")
    with pytest.raises(
        VectorsError, match=r"a\.pt: expected a file with the suffix \.npz or \.arrayrecord"
    ):
        open_vectors(tmp_path / "a.pt")
    (tmp_path / "a.npz").touch()
    with pytest.raises(VectorsError, match=r"a\.npz: an empty file"):
        open_vectors(tmp_path / "a.npz")
    (tmp_path / "a.npz").write_bytes(b"no archive at all")
    with pytest.raises(VectorsError, match=r"a\.npz: cannot be read as a \.npz file"):
        open_vectors(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", vectors=np.ones((4, 3)))
    with pytest.raises(VectorsError, match=r"b\.npz: no tokens, expected vectors"):
        open_vectors(tmp_path / "b.npz")
    np.savez(
        tmp_path / "c.npz",
        vectors=np.ones((1, 3)),
        tokens=np.ones((1, 2), int),
        vocabulary=np.ones(3),
    )
    with pytest.raises(VectorsError, match=r"c\.npz: .*one word or number each"):
        open_vectors(tmp_path / "c.npz")


def test_a_record_file_that_is_damaged_is_refused(tmp_path):
    path = tmp_path / "a.arrayrecord"
    save_vectors(path, make())
    about = json.loads((tmp_path / "a.json").read_text())
    whole = path.read_bytes()
    first = whole.index(np.asarray(make().vectors)[0].tobytes())
    path.write_bytes(whole[:first] + np.full(6, np.nan, np.float32).tobytes() + whole[first + 24 :])
    with pytest.raises(VectorsError, match=r"a\.arrayrecord: record 0 cannot be read"):
        open_vectors(path).take(np.arange(9))
    path.write_bytes(whole[:-10])
    with pytest.raises(VectorsError, match=rf"{len(whole) - 10} bytes, expected {len(whole)}"):
        open_vectors(path)
    path.write_bytes(whole)
    (tmp_path / "a.json").write_text(json.dumps(sealed(about | {"texts": 10})))
    with pytest.raises(VectorsError, match=r"9 texts, expected 10 by the manifest"):
        open_vectors(path)
    (tmp_path / "a.json").write_text(json.dumps(sealed(about | {"format": 0})))
    with pytest.raises(VectorsError, match="format: 0, expected 1"):
        open_vectors(path)
    (tmp_path / "a.json").unlink()
    with pytest.raises(VectorsError, match=r"a\.json: no such file, expected JSON"):
        open_vectors(path)


def test_ids_outside_the_vocabulary_are_refused():
    with pytest.raises(VectorsError, match=r"ids \d+ to 4\d, expected ids of the vocabulary of 20"):
        make(info=dataclasses.replace(INFO, vocabulary=20))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"shape": (2, 4)}, r"vectors and width \(K, E\) \(2, 4\), expected \(2, 3\) as in one"),
        ({"length": 4}, r"text length 4, expected 5 as in one"),
        (
            {"info": dataclasses.replace(INFO, tokenizer="xyz")},
            r"tokenizer xyz, expected abc as in one",
        ),
        (
            {"info": dataclasses.replace(INFO, vocabulary=60)},
            r"vocabulary 60, expected 50 as in one",
        ),
    ],
)
def test_sets_of_two_kinds_are_refused(other, message):
    one, two = (
        dataclasses.replace(make(), name="one"),
        dataclasses.replace(make(**other), name="two"),
    )
    with pytest.raises(VectorsError, match=f"two: {message}"):
        check_alike(one, two)
    check_alike(one, dataclasses.replace(make(info=VectorsInfo(pad_id=0)), name="says nothing"))
