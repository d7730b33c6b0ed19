"""`memjax prepare`: what `memjax train` would write first, and what is said of it."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from memjax.cli.arguments import UsageError, parse
from memjax.cli.prepare import ARGUMENTS, prepare_workdir
from memjax.cli.prepare import run as run_parsed
from memjax.config import ConfigError
from memjax.data import RowsError, prepare
from memjax.testing import tiny_config, write_corpus

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "quickstart.py"


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus.jsonl")


def arguments(corpus, workdir, *more: str) -> list[str]:
    own = ["vocab_size=320", "sequence_length=64", f"corpus={corpus}"]
    return [
        f"--config={CONFIG}",
        f"--workdir={workdir}",
        *(f"--config.data.{each}" for each in own),
        *more,
    ]


def run(args: list[str]) -> None:
    run_parsed(parse(ARGUMENTS, args))


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_it_makes_what_training_would_make(corpus, tmp_path, capsys):
    run(arguments(corpus, tmp_path / "run", "--workers=2"))
    said = capsys.readouterr().out
    config = tiny_config(corpus)
    own = type(config.data)(corpus=str(corpus), vocab_size=320, sequence_length=64)
    prepared = prepare(own, tmp_path / "data")
    assert files(tmp_path / "run" / "data") == files(tmp_path / "data")
    assert "tokens/s" in said and "near-duplicates" in said and ": made in " in said
    for split in ("train", "validation"):
        line = next(
            line
            for line in said.splitlines()
            if line.split("│")[1:] and line.split("│")[1].strip() == split
        )
        info = prepared.info[split]
        counts = [info[key] for key in ("documents", "rows", "tokens", "padding", "dropped_tokens")]
        assert [cell.strip() for cell in line.split("│")[2:-1]] == [
            *(f"{count:,}" for count in counts),
            f"{info['bytes'] / info['tokens']:.2f}",
        ]
    before = files(tmp_path / "run" / "data")
    run(arguments(corpus, tmp_path / "run"))
    assert "data: was there already" in " ".join(capsys.readouterr().out.split("\n"))
    assert files(tmp_path / "run" / "data") == before


def test_a_folder_of_sentences_and_other_files_into_a_log(corpus, tmp_path, capsys, monkeypatch):
    """Whole numbers in the table, and a line about the files that are left out."""
    monkeypatch.setenv("COLUMNS", "80")
    folder = tmp_path / ("deep-" * 20)
    folder.mkdir()
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    sentences = "".join(f"{' '.join(text.split())}\n" for text in texts)
    (folder / "SENTENCES.TXT").write_text(sentences)
    for name in ("a.pdf", "b.pdf", "c\x1b.md"):
        (folder / name).write_text("no text")
    run(arguments(folder, tmp_path / "run"))
    said = capsys.readouterr().out
    assert f"data: {folder}: left out 1 .md, 2 .pdf\n" in said
    documents, characters = len(texts), len(sentences)
    assert f"{folder}: {documents:,} documents, {characters:,} characters\n" in said
    rows = [line.split("│") for line in said.splitlines() if "│" in line]
    assert {len(row) for row in rows} == {9} and len(rows) == 2


def test_modes_are_flags(corpus, tmp_path, capsys):
    run(arguments(corpus, tmp_path / "run", "--config.data.packing=first_n_left"))
    capsys.readouterr()
    with pytest.raises(RowsError, match=r"config\.data\.packing=first_n_left, not packed"):
        run(arguments(corpus, tmp_path / "run"))


def test_a_table_of_padding_and_damage(tmp_path):
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    corpus.write_text(corpus.read_text() + "{half\n")
    data = type(tiny_config(corpus).data)(
        str(corpus), vocab_size=320, sequence_length=512, packing="per_document", skip_damaged=True
    )
    config = tiny_config(corpus, data=data)
    out = io.StringIO()
    prepared = prepare_workdir(config, tmp_path / "run", 1, Console(file=out, width=160))
    assert "damaged documents left out: 1" in out.getvalue()
    (error,) = prepared.info["damaged"]
    assert f"left out: {error[:60]}" in out.getvalue()
    assert f"{prepared.info['train']['padding']:,}" in out.getvalue()
    assert prepared.info["train"]["padding"] > 0


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ("--workers=0", UsageError, r"--workers: 0, expected a whole number of at least 1\."),
        (
            "--config.data.packing=whole",
            ConfigError,
            r"config\.data\.packing: 'whole', expected one of packed, per_document,"
            r" per_document_left, first_n",
        ),
        (
            "--config.data.tokenizer=byte_level",
            ConfigError,
            r"vocab_size=320 leaves no room.*256 reserved.*more than 512",
        ),
    ],
)
def test_wrong_flags(corpus, tmp_path, more, error, message):
    with pytest.raises(error, match=message):
        run(arguments(corpus, tmp_path / "run", more))
    assert not (tmp_path / "run").exists()


def test_the_workdir_is_needed():
    with pytest.raises(UsageError, match=r"--workdir: missing, .* For example: memjax prepare"):
        run([f"--config={CONFIG}"])
