"""`memjax compress` into a folder of parts, and the commands that read it."""

import pytest

from memjax.checkpoints.store import open_store
from memjax.cli.main import main
from memjax.inference import compression_parts
from memjax.testing import write_corpus

pytestmark = pytest.mark.usefixtures("loaded_once")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(compression_parts, "PART_BYTES", 300)


def compress(workdir, source, out, *more):
    stage = str(workdir / "stages" / "autoencoder")
    return main(["compress", stage, str(source), f"--out={out}", "--batch_size=8", *more])


def test_there_and_back(workdir, book, tmp_path, capsys):
    out, text = tmp_path / "new" / "s.store", write_corpus(tmp_path / "more.jsonl", documents=5)
    assert compress(workdir, book, f"{out}/") == 0
    said = " ".join(capsys.readouterr().out.split())
    store = open_store(out)
    parts = len(list(out.glob("part-*")))
    assert f"{len(store)} chunks of 2 documents, [1, 16] bfloat16 each" in said
    assert f"bytes of the store {sum(x.stat().st_size for x in out.iterdir()):,}" in said
    assert "nats per token" in said and parts > 1
    assert compress(workdir, book, out, "--eval_examples=0") == 0
    assert len(list(out.glob("part-*"))) == parts, "it is whole"
    stage = str(workdir / "stages" / "autoencoder")
    assert main(["reconstruct", stage, str(out), f"--against={book}"]) == 0
    assert "tokens right: " in capsys.readouterr().err
    assert compress(workdir, text, out, "--eval_examples=0") == 0
    assert len(open_store(out).documents) == 7 and len(list(out.glob("part-*"))) > parts
    page = tmp_path / "page.html"
    assert main(["report", str(out), f"--model={stage}", f"--out={page}"]) == 0
    assert page.is_file()


def test_wrong_input_is_one_clear_line(workdir, book, tmp_path, capsys):
    out = tmp_path / "s"
    assert compress(workdir, book, f"{out}/", "--eval_examples=0") == 0
    retriever = str(workdir / "stages" / "retriever")
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "more.txt").write_text("a memory holds what the chunk said")
    before = sorted(out.iterdir())
    for wrong, message in (
        ([book, out, "--limit=3"], "--limit: given, expected none with a folder of parts"),
        ([tmp_path / "more.txt", out, "--dtype=int8"], "dtype bfloat16, expected int8"),
        ([book, f"{tmp_path}/"], "is there already, expected a new or empty folder"),
        ([tmp_path / "blank.txt", tmp_path / "x/"], "nothing but white space, expected text"),
    ):
        assert compress(workdir, *wrong) == 2, wrong
        said = " ".join(capsys.readouterr().err.split())
        assert message in said and said.count("memjax:") == 1, said
    args = ["compress", retriever, str(tmp_path / "more.txt"), f"--out={out}/"]
    assert main(args) == 2
    assert "made by the encoder of stage autoencoder" in capsys.readouterr().err.replace("\n", " ")
    assert sorted(out.iterdir()) == before
