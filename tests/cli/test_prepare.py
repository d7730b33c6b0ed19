"""`memjax prepare`: what `memjax train` would write first, and what is said of it."""

import io
from pathlib import Path

import pytest
from absl import flags
from rich.console import Console

from memjax.cli.prepare import prepare_workdir, run
from memjax.config import ConfigError
from memjax.data import RowsError, prepare
from memjax.testing import tiny_config, write_corpus

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "quickstart.py"


@pytest.fixture
def corpus(tmp_path):
    return write_corpus(tmp_path / "corpus.jsonl")


def arguments(corpus, workdir, *more: str) -> list[str]:
    own = ["vocabulary=320", "row_tokens=64", f"corpus={corpus}"]
    return ["prepare", f"--config={CONFIG}", f"--workdir={workdir}", *(f"--config.data.{each}" for each in own), *more]


def files(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_it_makes_what_training_would_make(corpus, tmp_path, capsys):
    assert run(arguments(corpus, tmp_path / "run", "--workers=2")) == 0
    said = capsys.readouterr().out
    config = tiny_config(corpus)
    own = type(config.data)(corpus=str(corpus), vocabulary=320, row_tokens=64)
    prepared = prepare(own, tmp_path / "data")
    assert files(tmp_path / "run" / "data") == files(tmp_path / "data")
    assert "tokens/s" in said and "near-duplicates" in said and ": made in " in said
    for split in ("train", "validation"):
        line = next(line for line in said.splitlines() if line.split("│")[1:] and line.split("│")[1].strip() == split)
        info = prepared.info[split]
        counts = [info[key] for key in ("documents", "rows", "tokens", "padding", "dropped_tokens")]
        assert [cell.strip() for cell in line.split("│")[2:-1]] == [
            *(f"{count:,}" for count in counts),
            f"{info['bytes'] / info['tokens']:.2f}",
        ]
    before = files(tmp_path / "run" / "data")
    assert run(arguments(corpus, tmp_path / "run")) == 0
    assert "data: was there already" in " ".join(capsys.readouterr().out.split("\n"))
    assert files(tmp_path / "run" / "data") == before


def test_modes_are_flags(corpus, tmp_path, capsys):
    assert run(arguments(corpus, tmp_path / "run", "--config.data.rows=first_n_left")) == 0
    capsys.readouterr()
    with pytest.raises(RowsError, match=r"config\.data\.rows=first_n_left, not packed"):
        run(arguments(corpus, tmp_path / "run"))


def test_a_table_of_padding_and_damage(tmp_path):
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    corpus.write_text(corpus.read_text() + "{half\n")
    data = type(tiny_config(corpus).data)(str(corpus), vocabulary=320, row_tokens=512, rows="per_document", skip_damaged=True)
    config = tiny_config(corpus, data=data)
    out = io.StringIO()
    prepared = prepare_workdir(config, tmp_path / "run", 1, Console(file=out, width=160))
    assert "damaged documents left out: 1" in out.getvalue()
    assert f"{prepared.info['train']['padding']:,}" in out.getvalue()
    assert prepared.info["train"]["padding"] > 0


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ("--workers=0", flags.IllegalFlagValueError, r"workers=0"),
        (
            "--config.data.rows=whole",
            ConfigError,
            r"config\.data\.rows='whole' is not known; it can be packed, per_document, per_document_left, first_n",
        ),
        ("--config.data.tokenizer=byte_level", ConfigError, r"vocabulary=320 leaves no room.*256 reserved.*more than 512"),
    ],
)
def test_wrong_flags(corpus, tmp_path, more, error, message):
    with pytest.raises(error, match=message):
        run(arguments(corpus, tmp_path / "run", more))
    assert not (tmp_path / "run").exists()


def test_the_workdir_is_needed():
    with pytest.raises(flags.IllegalFlagValueError, match=r"--workdir is missing; for example: memjax prepare"):
        run(["prepare", f"--config={CONFIG}"])
