"""Rows as a TFDS data set: built without TensorFlow, one shard per block, the same rows as those of
`memjax prepare`, and read as other rows are."""

import collections
import dataclasses
import hashlib
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from memjax.config import Data
from memjax.data import (
    RowsError,
    TokenizerError,
    TrainBatches,
    blocks,
    evaluation_batches,
    is_validation,
    prepare,
)
from memjax.data.memories import identity
from memjax.data.sources import open_source
from memjax.data.sources.base import CorpusError
from memjax.data.tfds_rows import holds_rows, open_tfds_rows
from memjax.data.tfds_text import MemjaxText, TextConfig, work_of

N = 16
SPLITS = ("train", "validation")


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


def build(config: TextConfig, folder: str | Path) -> Path:
    """Prepares a data set and returns its own folder."""
    builder = MemjaxText(config=config, data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def contents(folder: Path) -> dict[str, str]:
    """The checksums of the shards of a folder."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.glob("*.array_record-*")
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory, config) -> str:
    """The folder in which the data set was prepared."""
    folder = str(tmp_path_factory.mktemp("tfds"))
    build(config, folder)
    assert not {"tensorflow", "apache_beam"} & {name.partition(".")[0] for name in sys.modules}
    return folder


def expected(config: TextConfig, tokenizer, split: str) -> list[tuple[int, ...]]:
    """The rows of a split: of each block the documents of that split, joined and cut."""
    source, rows = open_source(config.corpus), []
    for block in source.blocks(config.block_bytes):
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


@pytest.mark.parametrize("split", SPLITS)
def test_the_data_set_holds_the_rows_of_all_blocks_in_order(built, config, tokenizer, split):
    wanted = expected(config, tokenizer, split)
    builder = tfds.builder_from_directory(f"{built}/memjax_text/tiny/2.0.0")
    assert len(builder.info.splits[split].shard_lengths) > 2
    source = builder.as_data_source(split)
    stored = [source[number]["tokens"] for number in range(len(source))]
    assert {row.dtype.name for row in stored} == {"uint16"}
    assert len(wanted) > 20
    assert [tuple(row.tolist()) for row in stored] == wanted
    rows = open_tfds_rows(of(built), split, tokenizer.fingerprint, N)
    assert len(rows) == len(stored) and rows.row_tokens == N
    for number in (0, 7, -1):
        assert rows[number].dtype == np.int32
        np.testing.assert_array_equal(rows[number], stored[number])
    np.testing.assert_array_equal(rows.read([5, 0, 5]), np.stack([stored[5], stored[0], stored[5]]))
    with pytest.raises(IndexError):
        rows[len(rows)]


def test_prepare_makes_the_same_rows(built, config, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", config.block_bytes)
    data = Data(config.corpus, tokenizer=config.tokenizer, sequence_length=N, validation_share=0.2)
    found = prepare(data, tmp_path / "data", lambda _: None, workers=1)
    for rows, split in ((found.train, "train"), (found.validation, "validation")):
        own = open_tfds_rows(of(built), split)
        np.testing.assert_array_equal(own.read(range(len(own))), rows.read(range(len(rows))))


def test_a_block_without_rows_of_a_split_has_an_empty_shard(config, tmp_path):
    folder = build(dataclasses.replace(config, validation_share=0.02), tmp_path)
    info = tfds.builder_from_directory(folder).info.splits["validation"]
    rows = open_tfds_rows(of(str(tmp_path)), "validation")
    assert 0 in info.shard_lengths and sum(info.shard_lengths) == len(rows) > 0
    assert all(Path(file).exists() for file in info.filepaths)
    assert rows.read(range(len(rows))).shape == (len(rows), N)


def test_a_work_is_the_same_for_a_worker(config, tmp_path):
    work = work_of(config.recipe(), tmp_path)
    again = pickle.loads(pickle.dumps(work))
    for number in range(2):
        assert blocks.do(again, number) == blocks.do(work, number)


def test_finished_blocks_stay_after_an_error(built, config, tmp_path, monkeypatch):
    done, do = [], blocks.do

    def two(work, number, *args):
        if len(done) == 2:
            raise OSError("no space")
        done.append(number)
        return do(work, number, *args)

    monkeypatch.setattr(blocks, "do", two)
    with pytest.raises(OSError, match="no space"):
        build(config, tmp_path)
    assert done == [0, 1] and not (tmp_path / "memjax_text/tiny/2.0.0").exists()
    monkeypatch.setattr(
        blocks, "do", lambda work, number, *args: done.append(number) or do(work, number, *args)
    )
    folder = build(config, tmp_path)
    assert done == sorted(set(done)), "no block is made twice"
    assert contents(folder) == contents(Path(built) / "memjax_text/tiny/2.0.0")
    assert not list((tmp_path / "memjax_text/tiny").glob(".*"))


def test_damaged_documents_are_counted_and_named(config, tmp_path):
    lines = Path(config.corpus).read_text().splitlines(keepends=True)
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join([*lines[:40], *['{"text": "half\n'] * 25, *lines[40:]]))
    bad = dataclasses.replace(config, corpus=str(corpus))
    with pytest.raises(CorpusError, match=r"corpus\.jsonl:41: not JSON"):
        build(bad, tmp_path)
    folder = build(dataclasses.replace(bad, skip_damaged=True), tmp_path)
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["documents"] == 60 and metadata["skipped"] == {"not JSON": 25}
    places = [error.partition(": ")[0] for error in metadata["damaged"]]
    assert places == [f"{corpus}:{line}" for line in range(41, 61)]


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
    build(padded, tmp_path)
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
    file = min(rows.folder.glob("*validation*"))
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
        build(bad, tmp_path)


def test_without_beam_one_line_names_it(tmp_path, config, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    builder = MemjaxText(config=config, data_dir=str(tmp_path), file_format="array_record")
    given = tfds.download.DownloadConfig(beam_runner="FnApiRunner")
    with pytest.raises(CorpusError, match="needs the package apache-beam"):
        builder.download_and_prepare(download_config=given)


def test_another_format_is_refused(tmp_path, config):
    builder = MemjaxText(config=config, data_dir=str(tmp_path), file_format="tfrecord")
    with pytest.raises(CorpusError, match="file_format=tfrecord, expected array_record"):
        builder.download_and_prepare()


def test_a_large_vocabulary_is_stored_in_32_bits():
    from memjax.data.tfds_text import _features

    assert _features(8, 65536)["tokens"].np_dtype == np.uint16
    assert _features(8, 65537)["tokens"].np_dtype == np.int32
