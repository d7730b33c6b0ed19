"""Text files as chunks that know where in their file they stand, and chunks as what a decoder is
given at once."""

import gzip
import io
import json

import numpy as np
import pytest
from rich.console import Console
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from memjax.checkpoints.store_records import StoredDocument, StoreError
from memjax.data import CorpusError, load_tokenizer, train_tokenizer
from memjax.inference.chunking import Source, cut, read_sources
from memjax.inference.compression import grouped, groups
from memjax.inference.expansion import document_texts
from memjax.inference.generator import text_pieces
from memjax.progress import Reporter

TEXT = "the memory holds what the text said, naïve or 日本 alike. " * 20


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([TEXT], 300)


def spelled(tokenizer, row):
    return b"".join(tokenizer._bytes[i] for i in row.tolist())


@pytest.mark.parametrize("packed", [False, True])
def test_spans_are_bytes_of_the_file(tokenizer, tmp_path, packed):
    """Documents between separators, one of white space alone, one cut for its length, one that
    begins like another."""
    long = (TEXT + "\n") * 6
    file = (
        b"\xef\xbb\xbf"
        + "  \n<|endoftext|>\nthe memory\n <|endoftext|> \r\nthe memory"
        f" holds\r\n{long}\n\n{TEXT}\n".encode()
    )
    path = tmp_path / ("notes.txt.gz" if packed else "notes.txt")
    path.write_bytes(gzip.compress(file) if packed else file)
    chunks = cut(read_sources([str(path)]), tokenizer, 8)
    assert [document.name for document in chunks.documents] == [
        f"{path.name}#{i}" for i in (1, 2, 3)
    ]
    assert [document.start for document in chunks.documents] == sorted(
        document.start for document in chunks.documents
    )
    for row, (_, _, tokens, first, last) in zip(chunks.tokens, chunks.spans.tolist(), strict=True):
        assert spelled(tokenizer, row[:tokens]) == file[first:last]
        assert (row[tokens:] == tokenizer.pad_id).all() and 0 < tokens <= 8
    for number, document in enumerate(chunks.documents):
        own = chunks.spans[chunks.spans[:, 0] == number]
        np.testing.assert_array_equal(own[1:, 3], own[:-1, 4])
        np.testing.assert_array_equal(own[:, 1], 8 * np.arange(len(own)))
        assert own[0, 3] == document.start and own[-1, 4] == document.start + document.bytes
        assert own[:, 2].sum() == document.tokens and (own[:-1, 2] == 8).all()
    two, three = chunks.documents[1:]
    assert two.start + two.bytes == three.start, (
        "a text cut for its length goes on where it was cut"
    )


@pytest.mark.parametrize("normalizer", ["add_dummy_prefix", "remove_extra_whitespaces"])
def test_spans_are_bytes_of_the_text_whatever_its_vocabulary_makes_of_it(
    normalizer, tokenizer, tmp_path
):
    proto = ModelProto.FromString(tokenizer._model)
    setattr(proto.normalizer_spec, normalizer, True)
    (tmp_path / "a.model").write_bytes(proto.SerializeToString())
    other = load_tokenizer(tmp_path / "a.model")
    texts = ["the  memory holds, ", TEXT, "日本"]
    chunks = cut([Source(text[:1], text, 0) for text in texts], other, 8)
    assert [document.bytes for document in chunks.documents] == [len(x.encode()) for x in texts]
    for number, text in enumerate(texts):
        own = chunks.spans[chunks.spans[:, 0] == number]
        assert own[0, 3] == 0 and own[-1, 4] == len(text.encode())
        np.testing.assert_array_equal(own[1:, 3], own[:-1, 4])
    # Each document starts with the space of the vocabulary, and comes back without it.
    found = [text for _, text in document_texts(other, chunks, chunks.tokens)]
    assert found == (texts if other.exact else [" ".join(text.split()) for text in texts])
    for start in (True, False):
        ids = other.encode(TEXT, start=start)
        assert "".join(text_pieces(other, ids, start)) == other.decode(ids, start)


def test_text_in_json_counts_its_own_bytes(tokenizer, tmp_path):
    (tmp_path / "some").mkdir()
    lines = [json.dumps({"text": text}) for text in ("the memory\nholds", "naïve")]
    (tmp_path / "some" / "a\x1b.jsonl").write_text("\n".join(lines))
    chunks = cut(read_sources([str(tmp_path)]), tokenizer, 64)
    assert chunks.documents == (
        StoredDocument("a?.jsonl:1", int(chunks.spans[0, 2]), 16),
        StoredDocument("a?.jsonl:2", int(chunks.spans[1, 2]), 6),
    )
    np.testing.assert_array_equal(chunks.spans[:, 3:], [[0, 16], [0, 6]])
    assert spelled(tokenizer, chunks.tokens[1]) == "naïve".encode()


def test_spans_of_every_packing_and_what_is_left_out(tokenizer, tmp_path):
    """Of zstd as of gzip; of UTF-16 and of JSON lines they count the text's own bytes."""
    text = "".join(f"the line {i}, naïve{' and long' * 14}.\n" for i in range(400))
    (tmp_path / "a.TXT.GZ").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "b.txt").write_bytes(text.encode("utf-16"))
    (tmp_path / "c.pdf").write_text("no text")
    recorder = Reporter(Console(file=io.StringIO(), width=500))
    with recorder.active():
        chunks = cut(read_sources([str(tmp_path)]), tokenizer, 8)
    assert recorder.console.file.getvalue() == f"{tmp_path}: left out 1 .pdf\n"
    assert len(chunks.documents) == 800, "a long text without blank lines: by lines"
    for document, line in zip(chunks.documents[:400], text.splitlines(True), strict=True):
        raw = text.encode()[document.start :][: document.bytes]
        assert raw == line.encode()
    assert {document.start for document in chunks.documents[400:]} == {0}


def test_a_limit_ends_the_reading(tokenizer):
    def sources():
        yield Source("a", TEXT, 0)
        yield Source("b", TEXT, 0)
        raise AssertionError("read beyond what is wanted")

    whole = -(-len(tokenizer.encode(TEXT)) // 8)
    chunks = cut(sources(), tokenizer, 8, limit=whole + 2)
    assert len(chunks) == whole + 2 and len(chunks.documents) == 2
    np.testing.assert_array_equal(chunks.spans[-2:, :3], [[1, 0, 8], [1, 8, 8]])
    np.testing.assert_array_equal(chunks.tokens[-2:], chunks.tokens[:2])


def test_no_text_is_an_error(tokenizer, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(StoreError, match=r"empty\.txt: nothing but white space, expected text"):
        cut(read_sources([str(tmp_path / "empty.txt")]), tokenizer, 8)
    with pytest.raises(CorpusError, match="no such file on this machine"):
        cut(read_sources([str(tmp_path / "absent.txt")]), tokenizer, 8)


def test_chunks_are_decoded_with_others_of_their_document():
    found = groups(np.array([0, 0, 0, 2, 1, 1, 0]), 2)
    np.testing.assert_array_equal(found, [[0, 1], [2, -1], [3, -1], [4, 5], [6, -1]])
    np.testing.assert_array_equal(groups(np.array([4, 4]), 1), [[0], [1]])
    assert groups(np.array([], int), 3).shape == (0, 3)
    values = np.arange(14).reshape(7, 2)
    np.testing.assert_array_equal(
        grouped(values, found[1:3], -5), [[[4, 5], [-5, -5]], [[6, 7], [-5, -5]]]
    )
    np.testing.assert_array_equal(grouped(values[:, 0], found[:1], 0), [[0, 2]])
