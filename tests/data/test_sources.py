"""Files as sources: equal documents in order and in blocks, and errors that name damaged ones."""

import gzip
import json
import pickle
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memjax.data.sources import CorpusError, Document, DocumentError, open_source, parse_mixture
from memjax.data.sources import lines as lines_module
from memjax.data.sources import streams as streams_module

NOVELS = Path(__file__).parents[3] / "shared" / "data" / "novels"
SIZES = (1, 40, 1000, 1 << 40)


def pack(raw: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(raw)
    if suffix == ".zst":
        # Two frames, as parallel compressors write them.
        arrow = pytest.importorskip("pyarrow")
        halves = raw[: len(raw) // 2], raw[len(raw) // 2 :]
        return b"".join(arrow.compress(half, codec="zstd", asbytes=True) for half in halves)
    return raw


def agreed(source) -> list[Document]:
    """The documents of a source, which must be the same in every way of asking for them."""
    documents = list(source)
    assert all(document.text.strip() for document in documents)
    for size in SIZES:
        blocks = source.blocks(size)
        assert blocks == source.blocks(size)
        # Copies, as in other processes: no index, no open files.
        read = [
            document
            for block in blocks
            for document in pickle.loads(pickle.dumps(source)).read(block)
        ]
        assert read == documents
    assert json.loads(json.dumps(source.mtime_signature())) == source.mtime_signature()
    return documents


def streamed(raw: bytes, section: int, wrapped: int = 120) -> list[str]:
    """The rule of text files, line by line."""
    text = raw.decode("utf-8-sig")
    lines = text.split("\n")
    lines = [line + "\n" for line in lines[:-1]] + lines[-1:]
    inner = text.strip(" \t\n\r\x0b\f")
    by_lines = len(inner) >= section and not any(
        line.strip() in ("", "<|endoftext|>") for line in inner.split("\n")
    )
    if by_lines and max(map(len, inner.split("\n"))) > wrapped:
        return [line.removeprefix("\ufeff") for line in lines]
    documents = [""]
    for line in lines:
        separator = line.strip() == "<|endoftext|>"
        ends = line and (by_lines or not line.strip())
        if separator or (len(documents[-1]) >= section and ends):
            documents.append("")
        if not separator:
            documents[-1] += line
    return [re.sub("^\ufeff", "", document, flags=re.MULTILINE) for document in documents]


SEPARATORS = ["<|endoftext|>", " <|endoftext|>\u2003\r", "<|endoftext|>."]
BLANK = ["", " ", "\t \x0b", "\r", "\u3000", "\x85", "\xa0\u2009"]
WORDS = [
    "word",
    "\x1cé",
    "\u3000字" * 5,
    "𝛑" * 12,
    "x" * 23,
    "\ufeff",
    "é" * 18 + "a",
    "   indented",
    "\u2028<",
]
LINES = st.sampled_from([*SEPARATORS, *BLANK, *WORDS])


@settings(max_examples=120, deadline=None)
@given(st.lists(LINES, max_size=30), st.booleans(), st.sampled_from([1, 7, 64, 1 << 20]))
def test_text_files_are_cut_by_the_rule_wherever_pieces_of_the_file_end(
    tmp_path_factory, lines, mark, piece
):
    raw = ("\ufeff" * mark + "\n".join(lines)).encode()
    file = tmp_path_factory.mktemp("text") / "a.txt"
    file.write_bytes(raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams_module, "_PIECE", piece)
        patch.setattr(lines_module, "SECTION_CHARACTERS", 20)
        patch.setattr(lines_module, "WRAPPED_CHARACTERS", 16)
        source = open_source(str(file))
        assert agreed(source) == [
            Document(f"{file}#{i}", text)
            for i, text in enumerate(streamed(raw, 20, 16))
            if text.strip()
        ]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["", " ", "\x85", "\t\r", '{"text": "é"}', ' {"text": "b"}', '{"text": " "}']
        ),
        max_size=12,
    ),
    st.booleans(),
    st.sampled_from([1, 7, 1 << 20]),
)
def test_json_lines_are_numbered_by_line_and_blank_lines_are_no_documents(
    tmp_path_factory, lines, mark, piece
):
    file = tmp_path_factory.mktemp("json") / "a.jsonl"
    file.write_bytes(("\ufeff" * mark + "\n".join(lines)).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams_module, "_PIECE", piece)
        source = open_source(str(file))
        expected = [
            Document(f"{file}:{i}", json.loads(line)["text"])
            for i, line in enumerate(lines, 1)
            if line.strip()
        ]
        assert agreed(source) == [document for document in expected if document.text.strip()]


def test_sections_of_a_real_length(tmp_path):
    """A section ends at the first blank line after 4,000 characters, not bytes."""
    paragraphs = ["é" * 3998, "b" * 10, "c" * 4000, "d" * 3999, "e"]
    (tmp_path / "a.txt").write_text("\n\n".join(paragraphs))
    documents = agreed(open_source(str(tmp_path / "a.txt")))
    # 3998 characters and a line end: one too few.
    assert [document.text for document in documents] == [
        "é" * 3998 + "\n\n" + "b" * 10 + "\n",
        "\n" + "c" * 4000 + "\n",
        "\n" + "d" * 3999 + "\n",
        "\ne",
    ]
    assert documents[2].id == f"{tmp_path / 'a.txt'}#2"


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_packed_files_hold_the_same_documents(tmp_path, suffix):
    stories = [f"story {i} " + "é word\n" * (i % 50) for i in range(300)]
    text = "<|endoftext|>\n".join(story + "\n" for story in stories).encode()
    records = "\n".join(json.dumps({"text": story}) for story in stories).encode()
    (tmp_path / f"a.txt{suffix}").write_bytes(pack(text, suffix))
    (tmp_path / f"b.jsonl{suffix}").write_bytes(pack(records, suffix))
    source = open_source(str(tmp_path))
    documents = agreed(source)
    assert [document.text for document in documents] == [
        story + "\n" for story in stories
    ] + stories
    assert documents[299].id == f"{tmp_path}/a.txt{suffix}#299"
    assert documents[300].id == f"{tmp_path}/b.jsonl{suffix}:1"
    # A packed file cannot be entered in its middle.
    assert len(source.blocks(1000)) == 2 if suffix else len(source.blocks(1000)) > 20


def test_blocks_are_of_about_the_size_asked_for(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text("small\n")
    (tmp_path / "d.jsonl").write_text(
        "".join(json.dumps({"text": "x" * 87}) + "\n" for _ in range(100))
    )  # 100 bytes a line.
    blocks = open_source(str(tmp_path)).blocks(1000)
    assert [(block.part, block.start, block.stop) for block in blocks[:2]] == [
        (0, 0, 18),
        (3, 0, 1000),
    ]
    assert len(blocks) == 11
    assert blocks[-1].first == 91


def test_finding_blocks_takes_constant_memory(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' * 60_000)
    source = open_source(str(tmp_path / "a.jsonl"))
    tracemalloc.start()
    blocks = source.blocks(100_000)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(blocks), blocks[1].first) == (9, 7144)
    assert held < 20_000
    assert peak < 3 * (1 << 20) + 200_000, "of which the pieces read are 3 MiB at most"
    assert len(pickle.dumps(source)) < 1000


def damaged_lines() -> bytes:
    good = [json.dumps({"text": f"good {i}"}).encode() for i in range(3)]
    bad = [
        b'{"text": ',
        b"[1]",
        b'{"body": "x"}',
        b'{"text": 3}',
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b'{"text": null}',
    ]
    bad += [b'{"text": ' + b"9" * 5000 + b"}"]  # More digits than Python reads.
    return b"\n".join([good[0], *bad[:4], good[1], *bad[4:], good[2]])


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_damaged_lines_are_skipped_and_counted(tmp_path, suffix):
    (tmp_path / f"a.jsonl{suffix}").write_bytes(pack(damaged_lines(), suffix))
    source = open_source(str(tmp_path / f"a.jsonl{suffix}"), skip_damaged=True)
    assert [document.text for document in source] == ["good 0", "good 1", "good 2"]
    expected = {
        "not JSON": 2,
        "not a JSON object": 1,
        "no such field": 1,
        "not text": 2,
        "not UTF-8": 1,
        "half of a surrogate pair": 1,
    }
    assert dict(source.skipped) == expected
    # A worker's copy counts its own.
    worker = pickle.loads(pickle.dumps(source))
    assert not worker.skipped
    for block in source.blocks(60):
        list(worker.read(block))
    counts, messages = worker.take_skipped()
    assert counts == expected and len(messages) == 8
    assert messages[0].startswith(f"{source.name}:2: not JSON")
    assert worker.take_skipped() == ({}, [])
    # They have numbers all the same.
    assert [document.id.rpartition(":")[2] for document in source] == ["1", "6", "11"]
    with pytest.raises(DocumentError, match=r"a\.jsonl(\.gz)?:2: not JSON"):
        list(open_source(source.name))


@pytest.mark.parametrize(
    ("other", "read"),
    [
        (b"[" * 100_000 + b"]" * 100_000, {"not JSON": 1}),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, {"not JSON": 1}),
        (b"9" * 5000, {"not JSON": 1}),
        (b"9" * 400, {}),
        (b"1e999", {}),
        (b"[[[[1]]]]", {}),
    ],
)
def test_what_other_fields_hold_is_never_used(tmp_path, other, read):
    """A line is at most LONGEST bytes: no reader of JSON with narrower limits is needed."""
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one", "x": %b}\n{"text": "two"}\n' % other)
    source = open_source(str(tmp_path / "a.jsonl"), skip_damaged=True)
    assert [document.text for document in source] == (["two"] if read else ["one", "two"])
    assert source.skipped == read


def test_a_damaged_section_is_skipped_alone(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\n<|endoftext|>\nt\xe9o\n<|endoftext|>\nthree\n")
    source = open_source(str(tmp_path / "a.txt"), skip_damaged=True)
    assert [(document.id[-2:], document.text) for document in source] == [
        ("#0", "one\n"),
        ("#2", "three\n"),
    ]
    assert source.skipped == {"not UTF-8": 1}
    strict = iter(open_source(str(tmp_path / "a.txt")))
    assert next(strict).text == "one\n"
    with pytest.raises(CorpusError, match=r"a\.txt: not UTF-8 at byte 19"):
        next(strict)


def test_errors_come_back_from_processes():
    error = pickle.loads(pickle.dumps(DocumentError("a.jsonl:2: bad", "not JSON")))
    assert (str(error), error.reason) == ("a.jsonl:2: bad", "not JSON")


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_truncated_files_are_named_even_where_documents_are_skipped(tmp_path, suffix, skip):
    text = " ".join(map(str, np.random.default_rng(0).integers(0, 10**9, 5000))).encode()
    whole = pack(text, suffix)
    file = tmp_path / f"a.txt{suffix}"
    for raw in (
        whole[:-5],
        whole[: len(whole) // 3],
        b"not packed",
        *([whole + b"tail"] if suffix == ".zst" else []),
    ):
        file.write_bytes(raw)
        with pytest.raises(CorpusError, match=rf"a\.txt\{suffix}: truncated or damaged \w+ data"):
            list(open_source(str(file), skip_damaged=skip))


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "a.txt.zst").write_bytes(b"")
    with pytest.raises(
        CorpusError, match=r"a\.txt\.zst: needs the package pyarrow\. Run `pip install pyarrow`"
    ):
        list(open_source(str(tmp_path / "a.txt.zst")))


def test_files_that_change_or_vanish(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n' * 10)
    source = open_source(str(file))
    file.write_text('{"text": "a"}\n')
    assert open_source(str(file)).mtime_signature() != source.mtime_signature()
    with pytest.raises(CorpusError, match=r"a\.jsonl: became shorter during reading"):
        list(source)
    file.unlink()
    with pytest.raises(CorpusError, match=r"a\.jsonl: unreadable \(No such file"):
        list(source)


@pytest.mark.slow
def test_python_docs_are_a_source_too():
    source = open_source("python-docs")
    documents = list(source)
    assert len(documents) > 500
    blocks = source.blocks(200_000)
    assert len(blocks) > 8
    assert [document for block in blocks for document in source.read(block)] == documents


@pytest.mark.skipif(not NOVELS.exists(), reason="needs the shared novels")
def test_novels_are_cut_by_the_rule():
    found = [document.text for document in open_source(str(NOVELS / "[CDH]*.txt.gz"))]
    files = sorted(NOVELS.glob("[CDH]*.txt.gz"))
    assert found == [
        text
        for file in files
        for text in streamed(gzip.decompress(file.read_bytes()), 4000)
        if text.strip()
    ]
    assert len(found) > 100


@pytest.mark.parametrize(
    ("corpus", "parts"),
    [
        ("a+b.txt", [(1, "a+b.txt")]),
        ("2024*.jsonl", [(1, "2024*.jsonl")]),
        ("a + b.txt", [(1, "a + b.txt")]),
        ("hf:A/b:c", [(1, "hf:A/b:c")]),
        ("7*hf:A/b:sample-10BT + 3*tfds:c4/en", [(0.7, "hf:A/b:sample-10BT"), (0.3, "tfds:c4/en")]),
        ("0.7*hf:A:B+0.3*tfds:C", [(0.7, "hf:A:B"), (0.3, "tfds:C")]),
        (".5*c++/*.txt+1.5*python-docs", [(0.25, "c++/*.txt"), (0.75, "python-docs")]),
        ("2 * a.txt\n + 2 * b*.txt", [(0.5, "a.txt"), (0.5, "b*.txt")]),
        ("1*a+b.txt+1*c", [(0.5, "a+b.txt"), (0.5, "c")]),
    ],
)
def test_mixtures(corpus, parts):
    found = parse_mixture(corpus)
    assert [name for _, name in found] == [name for _, name in parts]
    np.testing.assert_allclose([weight for weight, _ in found], [weight for weight, _ in parts])


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ("0.7*hf:A + tfds:B", "part 'tfds:B' has no weight"),
        ("0.7*hf:A+tfds:B", "part 'tfds:B' has no weight"),
        ("hf:A + 0.3*tfds:B", "part 'hf:A' has no weight"),
        ("0.7*a.txt + much*b.txt", r"part 'much\*b.txt' has no weight"),
        ("0.7*a.txt + -1*b.txt", r"part '-1\*b.txt' has the weight -1, expected a positive"),
        ("0*a.txt + 1*b.txt", "has the weight 0"),
        ("nan*a.txt + 1*b.txt", "has the weight nan"),
        ("0.5*a.txt + 0.5*", r"part '0.5\*' has no corpus"),
    ],
)
def test_mixtures_that_make_no_sense(corpus, message):
    with pytest.raises(CorpusError, match=message):
        parse_mixture(corpus)


def test_a_mixture_is_not_one_source():
    with pytest.raises(CorpusError, match="a mixture, expected one corpus"):
        open_source("1*python-docs+1*a.txt")


@pytest.mark.parametrize(
    "corpus", ["tfds:", "hf:?split=train", "hf:a/b?spilt=train", "tfds:a?split=", "tfds:a?data_dir"]
)
def test_names_and_options_of_data_sets_are_checked(corpus):
    with pytest.raises(
        CorpusError, match=r"expected a data set after|expected one of \w+=..., \w+=..."
    ):
        open_source(corpus)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.gz", "a.txt.zst", "a.parquet", "a.arrayrecord"])
def test_what_is_no_file_is_not_opened(put_no_file, tmp_path, name):
    file = put_no_file(tmp_path / name)
    if not file.is_dir():
        with pytest.raises(CorpusError, match=r"pipe, device or socket, not a file\)"):
            open_source(str(file))
