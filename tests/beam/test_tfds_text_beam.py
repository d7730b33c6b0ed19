"""The builder run by Apache Beam. `make test-beam` makes an environment for it, without JAX."""

import dataclasses
import hashlib
import json
import logging
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from apache_beam.options.pipeline_options import PipelineOptions

from memjax.config import Data
from memjax.data import beam, blocks, open_rows, prepare, tfds_text, train_tokenizer
from memjax.data.sources import CorpusError
from memjax.data.tfds_rows import open_tfds_rows
from memjax.data.tfds_text import MemjaxText, TextConfig

N = 16
HERE = Path(__file__).resolve().parent
IN_PROCESS = PipelineOptions(runner="FnApiRunner")
TWO_WORKERS = PipelineOptions(
    runner="FnApiRunner", direct_num_workers=2, direct_running_mode="multi_processing"
)
sys.path.append(str(HERE))


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TextConfig:
    """Twelve blocks or more, some of them without held-out documents."""
    folder, rng = tmp_path_factory.mktemp("corpus"), random.Random(0)
    words = "the memory of a chunk is one vector that the decoder reads in place of tokens".split()
    texts = [" ".join(rng.choices(words, k=150)) + f" ({number}).\n" for number in range(120)]
    corpus, tokenizer = folder / "corpus.jsonl", folder / "tokenizer.model"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train_tokenizer(texts, 320).save(tokenizer)
    return TextConfig(
        name="tiny",
        corpus=str(corpus),
        tokenizer=str(tokenizer),
        row_tokens=N,
        validation_share=0.05,
        block_bytes=8000,
    )


def build(config: TextConfig, folder: Path, options: PipelineOptions | None) -> Path:
    """Prepares a data set and returns its own folder; without options, Beam takes no part."""
    builder = MemjaxText(config=config, data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(beam_options=options))
    return Path(builder.data_dir)


def contents(folder: Path) -> dict[str, str]:
    """The checksums of the shards of a folder."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.glob("*.array_record-*")
    }


def hashes(rows) -> list[str]:
    """The sorted checksums of the rows of a split."""
    return sorted(hashlib.sha256(row.tobytes()).hexdigest() for row in rows.read(range(len(rows))))


@pytest.fixture(scope="module")
def without_beam(config, tmp_path_factory) -> Path:
    return build(config, tmp_path_factory.mktemp("without"), None)


@pytest.fixture
def processes(config, tmp_path, monkeypatch) -> Path:
    """The folder in which each process that reads the corpus leaves a file of its number."""
    from watched import WatchedSource

    folder = tmp_path / "processes"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE.parents[1]), str(HERE)]))
    monkeypatch.setattr(
        tfds_text,
        "open_source",
        lambda corpus, *args: WatchedSource(corpus, folder, config.block_bytes, *args),
    )
    return folder


def test_two_workers_write_the_same_bytes(config, without_beam, processes, tmp_path):
    folder = build(config, tmp_path, TWO_WORKERS)
    shards, splits = contents(folder), tfds.builder_from_directory(folder).info.splits
    train, validation = (splits[name].shard_lengths for name in ("train", "validation"))
    assert len(train) == len(validation) == len(shards) / 2 > 11
    assert 0 in validation and 0 not in train
    assert shards == contents(without_beam)
    for name in ("dataset_info.json", "features.json", "metadata.json"):
        assert (folder / name).read_text() == (without_beam / name).read_text()
    workers = {file.name for file in processes.iterdir()}
    assert len(workers) == 2 and str(os.getpid()) not in workers
    assert not {"jax", "tensorflow"} & set(sys.modules)


def test_the_rows_are_those_of_prepare(config, without_beam, tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_BYTES", config.block_bytes)
    data = Data(
        config.corpus,
        tokenizer=config.tokenizer,
        sequence_length=N,
        validation_share=config.validation_share,
    )
    fingerprint = prepare(data, tmp_path / "data", print, workers=1).tokenizer.fingerprint
    for split in ("train", "validation"):
        rows = open_rows(tmp_path / f"data/rows-{N}", split, fingerprint)
        own = open_tfds_rows(f"tfds:{without_beam}", split, fingerprint)
        assert hashes(own) == hashes(rows) and len(rows) > 20


def test_a_killed_worker_is_replaced(config, without_beam, processes, tmp_path, caplog):
    (processes / "kill").touch()
    with caplog.at_level(logging.WARNING, "memjax"):
        folder = build(config, tmp_path, TWO_WORKERS)
    assert not (processes / "kill").exists() and len(list(processes.iterdir())) > 2
    assert "a process of Beam was killed. Another pipeline makes the" in caplog.text
    assert contents(folder) == contents(without_beam)
    assert not list(folder.parent.glob(".*"))


def test_workers_that_are_always_killed_end_the_build(config, tmp_path, monkeypatch):
    tried = []

    def killed(work, number):
        tried.append(number)
        if len(tried) > 5:
            raise beam.LostWorkerError("killed")
        return blocks.done_or_do(work, number)

    monkeypatch.setattr(beam, "done_or_do", killed)
    monkeypatch.setattr(beam, "MemjaxError", KeyError)  # It passes, as it does outside of a block.
    with pytest.raises(beam.LostWorkerError):
        build(config, tmp_path, IN_PROCESS)
    assert len(tried) == 5 + beam.TRIES
    monkeypatch.undo()
    assert len(contents(build(config, tmp_path, IN_PROCESS))) > 22


def test_the_script_of_the_documents(config, without_beam, tmp_path):
    page = (HERE.parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    corpus = Path(config.corpus)
    for old, new in (
        ("/data/web", corpus.parent),
        ("/data/tokenizer.model", config.tokenizer),
        ("/data/tfds", tmp_path),
        ("row_tokens=1024", f"row_tokens={N}, validation_share=0.05, block_bytes=8000"),
    ):
        assert script.count(old) == 1
        script = script.replace(old, str(new))
    command = re.search(
        r"^python (prepare_web\.py --runner=FnApiRunner(?:.|\\\n)*)", page, re.MULTILINE
    )
    (tmp_path / "prepare_web.py").write_text(script)
    given = command[1].replace("\\\n", " ").replace("=16", "=2").split()
    subprocess.run(
        [sys.executable, *given],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(HERE.parents[1])},
        check=True,
    )
    assert contents(tmp_path / "memjax_text/web_1024/2.0.0") == contents(without_beam)


def test_damaged_documents_are_counted_and_named(config, tmp_path):
    lines = Path(config.corpus).read_text().splitlines(keepends=True)
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join([*lines[:40], *['{"text": "half\n'] * 25, *lines[40:]]))
    bad = dataclasses.replace(config, corpus=str(corpus))
    with pytest.raises(CorpusError, match=rf"^{corpus}:41: not JSON"):
        build(bad, tmp_path, IN_PROCESS)
    folder = build(dataclasses.replace(bad, skip_damaged=True), tmp_path, TWO_WORKERS)
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["documents"] == 120 and metadata["skipped"] == {"not JSON": 25}
    places = [error.partition(": ")[0] for error in metadata["damaged"]]
    assert places == [f"{corpus}:{line}" for line in range(41, 61)]
