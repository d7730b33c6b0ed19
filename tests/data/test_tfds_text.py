"""Rows as a TFDS data set: built without TensorFlow, the same whoever prepares a block, and read as
other rows are."""

import collections
import dataclasses
import functools
import itertools
import json
import pickle
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from memjax.config import Data
from memjax.data import (
    RowsError,
    TokenizerError,
    TrainBatches,
    evaluation_batches,
    is_validation,
    prepare,
)
from memjax.data.memories import identity
from memjax.data.sources.base import CorpusError
from memjax.data.tfds_rows import holds_rows, open_tfds_rows
from memjax.data.tfds_text import MemjaxText, TextConfig, blocks_of, rows_of_block

N = 16


@pytest.fixture(scope="module")
def config(tmp_path_factory, stories, tokenizer) -> TextConfig:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"text": story}) + "\n" for story in stories)
    )
    tokenizer.save(folder / "tokenizer.model")
    return TextConfig(
        name="tiny",
        corpus=str(folder / "corpus.jsonl"),
        tokenizer=str(folder / "tokenizer.model"),
        row_tokens=N,
        validation_share=0.2,
        block_bytes=8000,
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory, config) -> str:
    """The folder in which the data set was prepared."""
    folder = str(tmp_path_factory.mktemp("tfds"))
    MemjaxText(config=config, data_dir=folder, file_format="array_record").download_and_prepare()
    assert not {"tensorflow", "apache_beam"} & {name.partition(".")[0] for name in sys.modules}
    return folder


def expected(config: TextConfig, tokenizer, split: str) -> list[tuple[int, ...]]:
    """The rows of a split: of each block the documents of that split, joined and cut."""
    from memjax.data.sources import open_source

    source, rows = open_source(config.corpus), []
    for _, block in blocks_of(config.recipe()):
        stream: list[int] = []
        for document in source.read(block):
            if is_validation(document.text, 0.2) == (split == "validation"):
                stream += [
                    *([tokenizer.eos_id] if stream else []),
                    *tokenizer.encode(document.text).tolist(),
                ]
        rows += [tuple(stream[start : start + N]) for start in range(0, len(stream) - N + 1, N)]
    return rows


def of(folder: str) -> str:
    return f"tfds:memjax_text/tiny?data_dir={folder}"


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_data_set_holds_the_rows_of_all_blocks(built, config, tokenizer, split):
    assert len(blocks_of(config.recipe())) > 2
    wanted = expected(config, tokenizer, split)
    source = tfds.builder_from_directory(f"{built}/memjax_text/tiny/1.0.0").as_data_source(split)
    stored = [source[number]["tokens"] for number in range(len(source))]
    assert {row.dtype.name for row in stored} == {"uint16"}
    assert len(wanted) > 20
    assert collections.Counter(tuple(row.tolist()) for row in stored) == collections.Counter(wanted)
    rows = open_tfds_rows(of(built), split, tokenizer.fingerprint, N)
    assert len(rows) == len(stored) and rows.row_tokens == N
    for number in (0, 7, -1):
        assert rows[number].dtype == np.int32
        np.testing.assert_array_equal(rows[number], stored[number])
    np.testing.assert_array_equal(rows.read([5, 0, 5]), np.stack([stored[5], stored[0], stored[5]]))
    with pytest.raises(IndexError):
        rows[len(rows)]


def test_a_block_is_the_same_on_any_worker(config, tokenizer):
    from memjax.data.sources import open_source

    recipe = config.recipe()
    blocks = pickle.loads(pickle.dumps(blocks_of(recipe)))
    for split in ("train", "validation"):
        task = pickle.loads(
            pickle.dumps(
                functools.partial(rows_of_block, recipe, open_source(recipe.corpus), split)
            )
        )
        found = {block[0]: list(task(block)) for block in reversed(blocks)}
        rows = list(itertools.chain.from_iterable(found[number] for number, _ in blocks))
        assert [tuple(features["tokens"].tolist()) for _, features in rows] == expected(
            config, tokenizer, split
        )
        names = [name for name, _ in rows]
        assert len(set(names)) == len(names), "a row's name is its own"
        again = list(task(blocks[1]))
        assert [name for name, _ in again] == [name for name, _ in found[1]]


def test_what_made_the_rows_is_kept(built, config, tokenizer):
    metadata = json.loads((open_tfds_rows(of(built), "train").folder / "metadata.json").read_text())
    assert (
        metadata["fingerprint"] == tokenizer.fingerprint and metadata["eos_id"] == tokenizer.eos_id
    )
    assert metadata["corpus"] == config.corpus and metadata["validation_share"] == 0.2


def test_batches_are_made_of_them(built, tokenizer):
    rows = open_tfds_rows(of(built), "train", tokenizer.fingerprint)
    batches = TrainBatches(rows, 4, seed=1)
    epoch = [
        tuple(row)
        for step in range(len(rows) // 4)
        for row in batches.batch(step)["tokens"].tolist()
    ]
    stored = collections.Counter(tuple(rows[number].tolist()) for number in range(len(rows)))
    assert not collections.Counter(epoch) - stored
    held_out = open_tfds_rows(of(built), "validation", tokenizer.fingerprint)
    (batch,) = evaluation_batches(held_out, 4, 4, tokenizer.pad_id)
    np.testing.assert_array_equal(batch[0], held_out[0])
    assert identity(rows) != identity(held_out)
    assert identity(rows) == identity(open_tfds_rows(of(built), "train"))


# What does not fit


def test_padding_is_counted_apart_from_tokens_and_on_the_side_of_the_config(config, tmp_path):
    padded = dataclasses.replace(config, rows="per_document", padding="left")
    MemjaxText(
        config=padded, data_dir=str(tmp_path), file_format="array_record"
    ).download_and_prepare()
    data = Data(
        corpus=of(str(tmp_path)),
        tokenizer=config.tokenizer,
        sequence_length=N,
        packing="per_document_left",
    )
    found = prepare(data, tmp_path / "data", lambda _: None)
    for rows, info in ((found.train, "train"), (found.validation, "validation")):
        real = np.stack([rows[i] for i in range(len(rows))]) != found.tokenizer.pad_id
        # Of many rows the counts are estimates.
        exact = 0 if len(rows) <= 1024 else 0.003
        tokens, padding = found.info[info]["tokens"], found.info[info]["padding"]
        assert tokens == pytest.approx(real.sum(), rel=exact) and tokens < real.size
        assert tokens + padding == real.size
        assert rows.mean_tokens == pytest.approx(real.sum(axis=1).mean(), rel=exact)
    with pytest.raises(RowsError, match="padded on the left, expected the right, as in training"):
        prepare(dataclasses.replace(data, packing="packed"), tmp_path / "data", lambda _: None)


def test_rows_of_another_tokenizer_or_length_are_refused(built):
    with pytest.raises(RowsError, match=r"tokenizer \w{16}, expected the one in use, 0{16}"):
        open_tfds_rows(of(built), "train", "0" * 16)
    with pytest.raises(
        RowsError, match=r"rows of 16 tokens, expected config\.data\.sequence_length=128"
    ):
        open_tfds_rows(of(built), "train", row_tokens=128)
    with pytest.raises(RowsError, match="no split 'test', only train, validation"):
        open_tfds_rows(of(built), "test")


def test_a_data_set_that_is_not_there_holds_no_rows(built, tmp_path):
    assert holds_rows(of(built))
    assert not holds_rows(of(str(tmp_path)))
    assert not holds_rows("python-docs")
    with pytest.raises(RowsError, match="no prepared data set with the feature 'tokens'"):
        open_tfds_rows(of(str(tmp_path)), "train")


def test_a_damaged_row_is_named(built):
    rows = open_tfds_rows(of(built), "validation")
    file = next(rows.folder.glob("*validation*"))
    whole = file.read_bytes()
    wanted = rows[3].astype("<u2").tobytes()
    damaged = bytearray(whole)
    damaged[whole.find(wanted)] ^= 1
    try:
        file.write_bytes(damaged)
        with pytest.raises(
            RowsError, match=r"validation.*: record 3 cannot be read .*Prepare the data set again"
        ):
            open_tfds_rows(of(built), "validation").read(range(len(rows)))
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"corpus": ""}, CorpusError, "has no corpus"),
        ({"corpus": "/nowhere.txt"}, CorpusError, "no such file on this machine"),
        ({"tokenizer": "/nowhere.model"}, TokenizerError, "cannot be read"),
        (
            {"vocabulary": 8000},
            CorpusError,
            "320 entries, expected vocabulary=8000",
        ),
    ],
)
def test_a_config_that_cannot_be_built(tmp_path, config, change, error, message):
    fields = {
        name: getattr(config, name) for name in ("corpus", "tokenizer", "row_tokens", "vocabulary")
    }
    bad = TextConfig(name="bad", **(fields | change))
    with pytest.raises(error, match=message):
        MemjaxText(
            config=bad, data_dir=str(tmp_path), file_format="array_record"
        ).download_and_prepare()


def test_a_large_vocabulary_is_stored_in_32_bits():
    from memjax.data.tfds_text import _features

    assert _features(8, 65536)["tokens"].np_dtype == np.uint16
    assert _features(8, 65537)["tokens"].np_dtype == np.int32
