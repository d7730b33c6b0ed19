"""Documents of local tasks, read as those of a corpus, and lines that are none."""

import gzip
import json

import pytest

from memjax.data import CorpusError
from memjax.errors import MemjaxError
from memjax.evaluation.tasks.local_files import LocalDataError, read

pytest.importorskip("datasets")
ONE, TWO = {"text": "one é", "more": 1}, {"text": "two"}


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "JSONL.GZ"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_of_any_encoding_of_unicode(tmp_path, suffix, encoding):
    raw = f"{json.dumps(ONE, ensure_ascii=False)}\n\n{json.dumps(TWO)}\n".encode(encoding)
    pack = gzip.compress if "jsonl." in suffix.lower() else bytes
    (tmp_path / f"wiki.{suffix}").write_bytes(pack(raw))
    assert read("wiki", ["text"], str(tmp_path))["test"].to_list() == [{"text": "one é"}, TWO]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", r"wiki\.jsonl, line 2: no JSON \("),
        (b"[" * 100_000, r"line 2: no JSON \(nested"),
        (b'{"text": "a", "more": %b1%b}' % (b"[" * 900, b"]" * 900), r"line 2: no JSON \(nested"),
        (b'{"text": "a", "text": "b"}', r"line 2: no JSON \(a key stands twice"),
        (b'{"text": "\\ud800"}', r"line 2: no JSON \(.*surrogates"),
        (b'["text"]', r"line 2: \['text'\], expected an object\. Write one JSON object per line"),
        (b"7", r"line 2: 7, expected an object"),
        (b'{"body": "a"}', r"line 2: has no text; this task's fields are text"),
        (b'"\xff"', r"wiki\.jsonl: not UTF-8 at byte 18"),
    ],
)
def test_lines_that_are_no_documents(tmp_path, line, message):
    (tmp_path / "wiki.jsonl").write_bytes(b'{"text": "good"}\n' + line + b"\n")
    with pytest.raises(MemjaxError, match=message):
        read("wiki", ["text"], str(tmp_path))


@pytest.mark.parametrize("value", ['"x"', "[1]", '{"a": 1}', "9" * 19])
def test_fields_of_several_types(tmp_path, value):
    (tmp_path / "a.jsonl").write_text(f'{{"more": 1}}\n{{"more": {value}}}\n')
    with pytest.raises(
        LocalDataError, match=r"a\.jsonl: fields of several types \(.*\. Write each"
    ):
        read("a", ["more"], str(tmp_path))


def test_files_that_are_absent_several_or_none(put_no_file, tmp_path):
    with pytest.raises(LocalDataError, match=r"one file wiki\*\.jsonl here.*there is none"):
        read("wiki", ["text"], str(tmp_path))
    put_no_file(tmp_path / "wiki.jsonl")
    with pytest.raises(CorpusError, match="not a file"):
        read("wiki", ["text"], str(tmp_path))
    for number in range(20):
        (tmp_path / f"wiki{number}.jsonl").touch()
    with pytest.raises(LocalDataError, match=r"wiki\.jsonl, .* and 13 more$"):
        read("wiki", ["text"], str(tmp_path))
