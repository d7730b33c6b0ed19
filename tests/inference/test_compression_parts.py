"""Texts become parts of a store that depend on the files alone, and a stopped work resumes."""

import gzip

import numpy as np
import pytest

import memjax
from memjax.checkpoints.store import open_store
from memjax.checkpoints.store_folder import StoreFolder
from memjax.checkpoints.store_records import StoreError
from memjax.inference import compression_parts
from memjax.inference.compression_parts import TextParts, compress_parts
from memjax.testing import write_corpus


@pytest.fixture(scope="module")
def model(made):
    return memjax.load(made, "autoencoder")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(compression_parts, "PART_BYTES", 300)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder / "a.jsonl", documents=9, words=40)
    (folder / "b.txt").write_text("a memory holds\n<|endoftext|>\n \n")
    (folder / "c.txt.gz").write_bytes(gzip.compress(b"\n \n" * 400))
    return folder


def files_of(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_parts_hold_what_one_file_holds(model, corpus, tmp_path):
    texts = TextParts([str(corpus)])
    compress_parts(model, texts, tmp_path / "s", dtype="float32", batch=8)
    whole, parts = model.compress(str(corpus), dtype="float32"), open_store(tmp_path / "s")
    assert len(texts) == len(list((tmp_path / "s").glob("part-*"))) > 2
    assert parts.documents == whole.documents and len(whole.documents) == 10
    np.testing.assert_array_equal(parts.spans, whole.spans)
    found, expected = (store.memories.leaves["vectors"] for store in (parts, whole))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    texts = model.reconstruct(parts)
    assert texts == model.reconstruct(whole) and len(texts) == 10


def test_a_stopped_work_resumes_with_the_missing_parts(model, corpus, tmp_path, monkeypatch):
    texts, write, written = TextParts([str(corpus)]), StoreFolder.write, []

    def disturbed(folder, number, contents):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(number)
        write(folder, number, contents)

    monkeypatch.setattr(StoreFolder, "write", disturbed)
    with pytest.raises(KeyboardInterrupt):
        compress_parts(model, texts, tmp_path / "s", batch=8)
    with pytest.raises(StoreError, match=f"parts 2.* of {len(texts)} are missing"):
        open_store(tmp_path / "s")
    monkeypatch.setattr(StoreFolder, "write", lambda *a: written.append(a[1]) or write(*a))
    for folder in ("s", "whole"):
        compress_parts(model, texts, tmp_path / folder, batch=8)
    assert written == [*range(len(texts)), *range(len(texts))]
    assert files_of(tmp_path / "s") == files_of(tmp_path / "whole")


def test_a_text_that_changed_is_another(model, corpus, tmp_path):
    path = write_corpus(tmp_path / "text.jsonl", documents=3)
    folder = StoreFolder.begin(
        tmp_path / "s", model.provenance, "int8", TextParts([str(path)]).digest, 1
    )
    assert folder.todo() == [0]
    write_corpus(path, documents=4)
    with pytest.raises(StoreError, match="another text is being compressed here, or this one has"):
        compress_parts(model, TextParts([str(path)]), tmp_path / "s", dtype="int8")
    with pytest.raises(StoreError, match="dtype=float16: expected one of"):
        compress_parts(model, TextParts([str(path)]), tmp_path / "new", dtype="float16")
    assert not (tmp_path / "new").exists()
