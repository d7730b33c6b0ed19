"""The page of a store as a browser runs it: opened by a file's address, without a server."""

import html
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from memjax.checkpoints.store import MemoryStore
from memjax.checkpoints.store_records import EncoderProvenance
from memjax.data import train_tokenizer
from memjax.experiment.report.store_data import GivenBack, Original, Sample
from memjax.experiment.report.store_page import Contents, page_text
from memjax.inference.chunking import Source, cut
from memjax.inference.neighbours import neighbours
from memjax.models.memory import bank
from memjax.testing import WORDS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
REQUIRED = os.environ.get("MEMJAX_BROWSER") == "required"
pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not REQUIRED, reason="there is no chromium here"
)
LENGTH = 8
WRONG = 3, 2
"""A chunk and its token that is given back wrongly."""


class Found(HTMLParser):
    """Elements of a page, each as its tag, its attributes and its text."""

    def __init__(self, page):
        super().__init__()
        self.all, self.open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.all.append({"tag": tag, **dict(attributes), "text": ""})
        if tag not in ("meta", "link", "input", "path", "polyline", "line", "br"):
            self.open.append(self.all[-1])

    def handle_endtag(self, tag):
        while self.open and self.open.pop()["tag"] != tag:
            pass

    def handle_data(self, words):
        for one in self.open:
            one["text"] += words

    def __call__(self, tag, **wanted):
        wanted = {"class" if key == "kind" else key: value for key, value in wanted.items()}
        return [one for one in self.all if one["tag"] == tag and wanted.items() <= one.items()]


@pytest.fixture(scope="module")
def book():
    """Chunks of two texts, the second with characters of many bytes and with tags, and their
    tokenizer."""
    draw = np.random.default_rng(0)
    first = " ".join(draw.choice(WORDS, 6000))
    tokenizer = train_tokenizer([first], 320)
    second = f"naïve \U0001f9e0 </script><b>&amp;</b>\n{first[:300]}"
    sources = [Source("a.txt#0", first, 0), Source("a.txt#1", second, len(first))]
    return cut(sources, tokenizer, LENGTH), tokenizer


@pytest.fixture(scope="module")
def pages(book, tmp_path_factory):
    """Pages of a store with the original text, and without."""
    chunks, tokenizer = book
    made = EncoderProvenance(
        *("autoencoder", "first", 1, {}, "0" * 64, tokenizer.fingerprint, 320, LENGTH),
        {"vectors": (1, 4)},
    )
    store, draw = MemoryStore(made), np.random.default_rng(1)
    for number, document in enumerate(chunks.documents):
        spans = chunks.spans[chunks.spans[:, 0] == number, 1:]
        vectors = draw.normal(size=(len(spans), 1, 4)).astype(np.float32)
        store.append(document, bank(vectors), spans)
    given = chunks.tokens.copy()
    given[WRONG] = tokenizer.encode("Q", start=False)[-1]
    numbers = np.arange(0, len(store), 5)
    folder = tmp_path_factory.mktemp("pages")
    one = store[:1], GivenBack(given[:1], "alone"), None, None, neighbours(store[:1], 5), []
    text = page_text("a.store", 123, one[0], tokenizer, "right", Contents(*one[1:]))
    (folder / "one.html").write_text(text, encoding="utf-8")
    for name, original in (
        ("known", Original(chunks.tokens, np.ones(len(store), bool))),
        ("unknown", None),
    ):
        sample = Sample(numbers, chunks.tokens[numbers])
        contents = Contents(
            GivenBack(given, "each chunk from its own memory"),
            *(original, sample, neighbours(store, 5), ["A <note>."]),
        )
        text = page_text("a.store", 123, store, tokenizer, "right", contents)
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def opened(pages, tmp_path):
    """Opens a page at a fragment, runs a script on it, and returns its elements."""

    def run(name, fragment="", script=""):
        page = tmp_path / "page.html"
        text = (pages / f"{name}.html").read_text(encoding="utf-8")
        wrapped = f"<script>setTimeout(() => {{ {script} }}, 100);</script></body>"
        page.write_text(text.replace("</body>", wrapped), encoding="utf-8")
        done = subprocess.run(
            [
                str(CHROMIUM),
                *("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"),
                *("--dump-dom", "--virtual-time-budget=3000"),
                *(f"--user-data-dir={tmp_path / 'browser'}", f"{page.as_uri()}{fragment}"),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return Found(done.stdout)

    return run


def texts(book, numbers):
    chunks, tokenizer = book
    return [tokenizer.decode(chunks.tokens[n], start=False).replace("\n", "↵​") for n in numbers]


def test_a_link_opens_a_chunk(opened, book):
    found = opened("known", "#chunk=3")
    chunks, tokenizer = book
    (chunk,) = found("article", id="chunk")
    assert found("h3")[0]["text"].startswith("Chunk 3")
    (_, _, _, first, last) = chunks.spans[3]
    assert f"a.txt#0, bytes {first} to {last}; tokens 24 to 32" in chunk["text"]
    assert "8 bytes of memory" in chunk["text"] and "7 of 8 tokens right" in chunk["text"]
    wanted = tokenizer.pieces([chunks.tokens[WRONG]])[0]
    marks = [one for one in found("mark") if one.get("title")]
    assert {(one["text"], one["title"]) for one in marks} == {("Q", f"should be “{wanted}”")}
    assert texts(book, [3])[0] in chunk["text"], "the text itself"
    links = [one["href"] for one in found("a") if one.get("href", "").startswith("#chunk=")]
    assert links[:2] == ["#chunk=2", "#chunk=4"] and len(links) == 7
    rows = found("div", role="option")
    assert rows[3]["aria-selected"] == "true" and len(rows) < 60
    assert rows[0]["aria-setsize"] == str(len(chunks)) and len(chunks) > 1000
    assert len(found("polyline")) == 2 and found("p", kind="note")[0]["text"] == "A <note>."


def test_a_click_and_keys_open_chunks(opened, book):
    last = len(book[0]) - 1
    script = """
    const list = document.getElementById("list"), seen = [];
    const note = () => seen.push(document.querySelector("h3").firstChild.data + location.hash);
    const key = (name) => {
      list.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
      note();
    };
    document.querySelector("[data-chunk='4']").click();
    setTimeout(() => {
      note();
      ["ArrowDown", "ArrowDown", "ArrowUp", "End", "ArrowDown", "Home"].forEach(key);
      key("End");
      document.title = JSON.stringify(seen);
    }, 200);
    """
    found = opened("known", "", script)
    numbers = [4, 5, 6, 5, last, last, 0, last]
    assert json.loads(found("title")[0]["text"]) == [f"Chunk {n}#chunk={n}" for n in numbers]
    rows = found("div", role="option")
    assert rows[-1]["data-chunk"] == str(last) and len(rows) < 60, "the end is in view"
    assert rows[-1]["aria-selected"] == "true"


def test_a_phrase_is_found_where_it_begins(opened, book):
    chunks, tokenizer = book
    text = [tokenizer.decode(row, start=False) for row in chunks.tokens]
    phrase = (text[40][-9:] + text[41] + text[42][:6]).upper()
    found = opened("known", f"#find={phrase.replace(' ', '+')}")
    assert [one["data-chunk"] for one in found("div", role="option")] == ["40"]
    assert found("output")[0]["text"] == f"1 of {len(chunks):,} chunks"
    none = opened("unknown", "#find=zzz")
    assert not none("div", role="option") and none("p", kind="none-found")


def test_chunks_with_errors_are_picked_and_only_where_they_are_known(opened):
    script = "document.getElementById('errors').click();"
    found = opened("known", "", script)
    assert [one["data-chunk"] for one in found("div", role="option")] == ["3"]
    unknown = opened("unknown", "#chunk=3")
    assert not unknown("input", id="errors")
    assert not [one for one in unknown("mark") if one.get("title")]
    assert "8 tokens" in unknown("article")[0]["text"]


def test_characters_of_several_tokens_and_tags_are_text(opened, book):
    chunks, _ = book
    first = int(np.flatnonzero(chunks.spans[:, 0] == 1)[0])
    found = opened("known", f"#chunk={first + 1}")
    rows = {one["data-chunk"]: one for one in found("div", role="option")}
    shown = [one["text"] for one in found("span", kind="text")]
    joined = "".join(shown[list(rows).index(str(first)) :])
    assert joined.startswith("naïve ") and "</script><b>&amp;</b>↵" in joined
    assert "\U0001f9e0" in joined or "\ufffd" in joined, "a chunk may end inside of it"
    assert not found("b")


def test_a_store_of_one_chunk_has_a_page(opened, book):
    found = opened("one", "#chunk=9")
    assert found("h3")[0]["text"] == "Chunk 0list ↑" and len(found("div", role="option")) == 1
    assert texts(book, [0])[0] in found("article")[0]["text"] and not found("ol")


def test_the_page_loads_nothing(pages):
    text = (pages / "known.html").read_text(encoding="utf-8")
    outside = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:,)""", outside)
    assert "default-src 'none'" in html.unescape(text) and "http://" not in text
