"""`memjax report` of a store: its page beside it, the model and the text that it needs, and every
wrong input as one line."""

import json
import re
import shutil

import pytest

import memjax
from memjax import released
from memjax.cli.main import main

BOOK = "A memory holds what the chunk said. The decoder reads it in place of words.\n"
DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)


@pytest.fixture(scope="module")
def written(made, tmp_path_factory):
    """A text, its store and a stage of another encoder."""
    folder = tmp_path_factory.mktemp("written")
    (folder / "book.txt").write_text(BOOK)
    model = memjax.load(made, "autoencoder")
    model.compress(folder / "book.txt").save(folder / "book.store")
    model.untrained(1).save(folder / "other")
    return folder


@pytest.fixture
def files(written, tmp_path, monkeypatch):
    """A copy of it, the working folder."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(written, tmp_path, dirs_exist_ok=True)


def stage(made):
    return f"--model={made / 'stages' / 'autoencoder'}"


def test_the_page_of_a_store_is_beside_it(made, files, capsys):
    assert main(["report", "book.store", stage(made)]) == 0
    assert capsys.readouterr().out.endswith("book.html\n")
    page = (files / "book.html").read_text(encoding="utf-8")
    assert "<h1>book.store</h1>" in page and "Compared with book.txt, which lies beside" in page
    data = json.loads(DATA.search(page)[1])
    store = memjax.open_store("book.store")
    assert len(data["counts"]) == len(store) and {"given", "text"} == data["tokens"].keys()
    # The same again, over a page of memjax.
    assert main(["report", "book.store", stage(made), "--against=book.txt"]) == 0
    again = (files / "book.html").read_text(encoding="utf-8")
    assert DATA.search(again)[1] == DATA.search(page)[1] and "Compared with" not in again


def test_without_the_text_nothing_is_marked(made, files):
    (files / "book.txt").unlink()
    assert main(["report", "book.store", stage(made), "--out=a/page.html"]) == 0
    page = (files / "a" / "page.html").read_text(encoding="utf-8")
    assert "(book.txt) is not beside the store" in page and "No original is there" in page
    assert {"given"} == json.loads(DATA.search(page)[1])["tokens"].keys()


def test_a_released_model_is_found_by_its_encoder(made, files, monkeypatch, capsys):
    monkeypatch.setattr(released, "_FOLDER", files / "package")
    assert main(["report", "book.store"]) == 2
    assert " ".join(capsys.readouterr().err.split()) == (
        "memjax: book.store: made by the encoder of stage autoencoder (autoencoder, step 8),"
        " expected that of a released model (none). Name a stage with that encoder by --model=PATH."
    )
    memjax.load("other").save(files / "package" / "another")
    assert main(["report", "book.store"]) == 2
    assert "of a released model (another)" in " ".join(capsys.readouterr().err.split())
    memjax.load(made, "autoencoder").save(files / "package" / "tiny")
    assert main(["report", "book.store"]) == 0
    assert (files / "book.html").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["book.store", "--model=other"], "book.store: made by the encoder of stage autoencoder"),
        (["none.store"], "none.store: No such file or directory, expected a store"),
        (["book.txt"], "expected a store of `memjax compress`"),
        (["book.store", "--out=mine.html"], "mine.html: exists and is no page of memjax, expected"),
        (["book.store", "{stage}", "--against=mine.txt"], "mine.txt: holds none of the texts of"),
        (["book.store", "{stage}", "--against=none.txt"], "corpus 'none.txt': no such file"),
        (["{run}", "--model=other", "--out=x"], "--model, --out: given, expected none with a work"),
        (["nowhere"], "nowhere"),
    ],
)
def test_wrong_input_is_one_line_before_the_work(args, message, made, files, monkeypatch, capsys):
    def work(*_):
        raise AssertionError("begun")

    monkeypatch.setattr("memjax.experiment.report.store_page.give_back", work)
    (files / "mine.html").write_text("<p>mine")
    (files / "mine.txt").write_text("Another text.")
    before = sorted(files.iterdir())
    args = [arg.format(stage=stage(made), run=made) for arg in args]
    assert main(["report", *args]) == 2
    found = " ".join(capsys.readouterr().err.split())
    assert message in found and found.count("memjax: ") == 1
    assert sorted(files.iterdir()) == before and (files / "mine.html").read_text() == "<p>mine"
