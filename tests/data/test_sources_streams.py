"""Texts as they come: joined, in other encodings, without blank lines, and bombs."""

import codecs
import gzip
import json
import os
import subprocess
import sys

import pytest

from memjax.data import CorpusError, open_source
from memjax.data.sources import streams

ONE, TWO = '{"text": "one é"}\n', '{"text": "two 字"}\n'
ENCODINGS = {
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


def texts(path, **settings) -> list[str]:
    return [document.text for document in open_source(str(path), **settings)]


def zstd(raw: bytes) -> bytes:
    return pytest.importorskip("pyarrow").compress(raw, codec="zstd", asbytes=True)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstd])
def test_joined_files_may_each_begin_with_a_byte_order_mark(tmp_path, pack):
    suffix = {bytes: "", gzip.compress: ".gz"}.get(pack, ".zst")
    raw = [f"\ufeff{text}".encode() for text in (ONE, TWO, "", "\n")]
    lines = tmp_path / f"a.jsonl{suffix}"
    lines.write_bytes(b"".join(map(pack, raw)))
    source = open_source(str(lines))
    for size in (1, 1 << 40):
        documents = [document for block in source.blocks(size) for document in source.read(block)]
        assert [document.text for document in documents] == ["one é", "two 字"]
        assert documents[1].id == f"{lines}:2"
    lines.write_bytes(b"".join(pack(text.strip()) for text in raw[:2]) + pack(b"\n" + raw[0][3:]))
    source = open_source(str(lines))
    for size in (1, 1 << 40):
        documents = [document for block in source.blocks(size) for document in source.read(block)]
        assert [document.text for document in documents] == ["one é", "two 字", "one é"]
        assert [document.id[-2:] for document in documents] == [":1", ":1", ":2"]
    text = tmp_path / f"a.txt{suffix}"
    text.write_bytes(b"".join(pack(f"\ufeff{name}\n".encode()) for name in ("a", "b\ufeffc")))
    assert texts(text) == ["a\nb\ufeffc\n"]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_other_encodings_of_unicode_are_read(tmp_path, encoding, pack):
    suffix = "" if pack is bytes else ".gz"
    story = "é 字 𝛑\r\n<|endoftext|>\r\n\ufeffword\r\n" * 40
    raw = ENCODINGS[encoding] + story.encode(encoding)
    (tmp_path / f"a.txt{suffix}").write_bytes(pack(raw))
    (tmp_path / f"b.jsonl{suffix}").write_bytes(
        pack(ENCODINGS[encoding] + f"{ONE}\ufeff{TWO}".encode(encoding))
    )
    source = open_source(str(tmp_path))
    expected = ["é 字 𝛑\r\n", *["word\r\né 字 𝛑\r\n"] * 39, "word\r\n", "one é", "two 字"]
    assert [document.text for document in source] == expected
    for size in (1, 100):
        blocks = source.blocks(size)
        assert [d.text for block in blocks for d in source.read(block)] == expected
    (tmp_path / f"a.txt{suffix}").write_bytes(pack(raw[:-1]))
    with pytest.raises(CorpusError, match=r"a\.txt\S*: truncated or damaged UTF-\d\d text"):
        texts(tmp_path)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_other_encodings_without_a_mark_are_named_and_the_advice_works(tmp_path, encoding):
    file = tmp_path / "a.jsonl"
    file.write_bytes(ONE.encode(encoding))
    with pytest.raises(CorpusError, match=r"a\.jsonl: \d+ of the .* are zero.*`iconv -f") as error:
        texts(file, skip_damaged=True)
    assert "\n" not in str(error.value)
    file.write_bytes(file.read_bytes().decode(encoding).encode())
    assert texts(file) == ["one é"]


def test_a_long_text_without_blank_lines_has_a_document_per_line(tmp_path):
    lines = [f"Sentence {i} is not wrapped, 字. {'word ' * (20 + i % 10)}\n" for i in range(400)]
    file = tmp_path / "a.txt"
    for raw in ("".join(lines), "\n \n" + "".join(lines) + "\n\n", "\ufeff" + "".join(lines)):
        file.write_text(raw)
        source = open_source(str(file))
        assert [document.text for document in source] == lines
        documents = [d for block in source.blocks(1000) for d in source.read(block)]
        assert documents == list(source)
        assert all(file.read_bytes()[d.start :].startswith(d.text.encode()) for d in documents)
    file.write_text("".join(lines[:200]) + "\n" + "".join(lines[200:]))
    assert len(texts(file)) == 2, "a blank line ends a document"
    file.write_text("".join(lines[:3]))
    assert texts(file) == ["".join(lines[:3])], "a short text is one document"


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_wrapped_text_without_blank_lines_is_parted_at_line_ends(tmp_path, monkeypatch, mark):
    """A document ends with the line in which it gets 4,000 characters, not bytes."""
    lines = [f"{i:03} {'字' * (i % 117)}\n" for i in range(400)]
    file = tmp_path / "a.txt"
    file.write_text(mark + "".join(lines))
    expected = [""]
    for line in lines:
        expected += [""] if len(expected[-1]) >= 4000 else []
        expected[-1] += line
    for piece in (1 << 20, 512):
        monkeypatch.setattr(streams, "_PIECE", piece)
        source = open_source(str(file))
        assert [document.text for document in source] == expected
        documents = [d for block in source.blocks(1000) for d in source.read(block)]
        assert documents == list(source)
        assert all(file.read_bytes()[d.start :].startswith(d.text.encode()) for d in documents)
    file.write_text("".join(lines) + f"{'x' * 121}\n")
    assert len(texts(file)) == 401, "a longer line shows that lines are documents"


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".txt.gz", ".jsonl.gz"])
def test_a_document_that_is_too_long_is_named_by_its_line(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(streams, "LONGEST", 5000)
    monkeypatch.setattr(streams, "_PIECE", 512)
    pack = gzip.compress if suffix.endswith(".gz") else bytes
    file = tmp_path / f"a{suffix}"
    long = "x" * 6000
    if "jsonl" in suffix:
        long = json.dumps({"text": long})
    file.write_bytes(pack(f"{ONE}{ONE}{long}\n{ONE}".encode()))
    named = rf"a{suffix}:3: here starts a document of more than 5,000 bytes"
    for skip in (False, True):
        with pytest.raises(CorpusError, match=named):
            texts(file, skip_damaged=skip)
    whole = "one\n\n" + "many lines\n" * 600
    if suffix.startswith(".txt"):
        file.write_bytes(pack(whole.encode()))
        with pytest.raises(CorpusError, match=rf"a{suffix}:1: .*Break it by lines of <.endoft"):
            texts(file)
        broken = whole.replace("many lines\n" * 300, "many lines\n" * 300 + "<|endoftext|>\n")
        file.write_bytes(pack(broken.encode()))
        assert "".join(texts(file)) == whole


def run_lengths(blocks: int) -> bytes:
    """A zstd frame of blocks that repeat one byte 131,072 times, in four bytes each."""
    last = [*[0] * (blocks - 1), 1]
    return b"\x28\xb5\x2f\xfd\x00\x38" + b"".join(
        (end | 1 << 1 | 1 << 20).to_bytes(3, "little") + b"a" for end in last
    )


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux")
@pytest.mark.parametrize("name", ["a.txt.zst", "a.jsonl.zst", "a.txt.gz"])
def test_bombs_take_bounded_memory(tmp_path, name):
    pytest.importorskip("pyarrow")
    file = tmp_path / name
    packed = run_lengths(4096) if "zst" in name else gzip.compress(bytes([97]) * (1 << 20)) * 512
    file.write_bytes(packed)  # Half a GiB of one line.
    script = f"""
from memjax.data import CorpusError, open_source
try:
    list(open_source({str(file)!r}))
except CorpusError as error:
    print(error)
print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0])
"""
    shown = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    ).stdout.splitlines()
    assert f"{name}:1: here starts a document of more than 67,108,864 bytes" in shown[0]
    assert int(shown[1]) < 600_000, "KiB"


def test_a_zstd_window_that_needs_gigabytes_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    raw = bytearray(run_lengths(1))
    for exponent, fits in ((17, True), (18, False), (21, False)):
        raw[5] = exponent << 3
        (tmp_path / "a.txt.zst").write_bytes(raw)
        if fits:
            assert texts(tmp_path / "a.txt.zst") == ["a" * 131_072]
        else:
            with pytest.raises(CorpusError, match=r"a\.txt\.zst: zstd data with a window of more"):
                texts(tmp_path / "a.txt.zst")


def test_files_of_a_folder_are_read_in_any_case_and_through_links_or_counted(tmp_path):
    folder = tmp_path / "corpus"
    for place in ("corpus/sub", "elsewhere/deep"):
        (tmp_path / place).mkdir(parents=True)
    (folder / "b.txt").write_text("b")
    (folder / "A.TXT").write_text("A")
    (folder / "sub" / "C.Jsonl.GZ").write_bytes(gzip.compress(ONE.encode()))
    (tmp_path / "elsewhere/deep/d.txt").write_text("d")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(tmp_path / "elsewhere" / "deep")
    (folder / "sub" / "circle").symlink_to(folder)
    source = open_source(str(folder))
    assert [document.text for document in source] == ["A", "d", "b", "one é"]
    assert source.left_out == ""
    for name in ("a.pdf", "b.PDF", "README", "c.md"):
        (folder / name).write_text("no")
    (folder / "gone.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe.txt")
    assert (
        open_source(str(folder)).left_out
        == "1 .PDF, 1 .md, 1 .pdf, 1 broken link, 1 no ending, 1 pipe, device or socket"
    )
    (folder / "b.dir").mkdir()
    assert open_source(str(folder / "b.[dt]*")).left_out == "1 folder"
    assert open_source(str(folder / "**" / "b.t*")).left_out == ""
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.pdf").write_text("no")
    with pytest.raises(CorpusError, match=r"no file in this folder ends in .*It holds 1 \.pdf"):
        open_source(str(tmp_path / "none"))
