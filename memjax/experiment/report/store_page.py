"""Write the page of a store: its text as its memories give it back, chunk by chunk.

The page is one file that opens without a server. Its data is one JSON object in a script tag, of
which the page's own script draws the rows that are in view.

Shapes: N chunk, B bin of the chart.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from memjax import released
from memjax.checkpoints.store import MemoryStore, open_store
from memjax.checkpoints.store_folder import bytes_of
from memjax.checkpoints.store_records import StoreError
from memjax.data import Tokenizer
from memjax.evaluation import numbers
from memjax.experiment.report.run import ReportError
from memjax.experiment.report.store_data import (
    GivenBack,
    Original,
    Sample,
    find_original,
    give_back,
    page_data,
    read_original,
    recall_sample,
    wrong_tokens,
)
from memjax.experiment.templates import MARK, render, write_page
from memjax.files import check_writable, regular
from memjax.inference import TrainedModel, load
from memjax.inference.neighbours import Neighbours, neighbours
from memjax.models.memory import VECTORS
from memjax.version import __version__

BINS = 60
"""Points of a line of the chart, at most."""
NEAREST = 5
NEAREST_LIMIT = 2**17
"""Memories whose nearest ones are looked for, at most: time grows with the square."""


class Contents(NamedTuple):
    """The contents of a page."""

    given: GivenBack
    original: Original | None
    sample: Sample | None
    nearest: Neighbours | None
    notes: Sequence[str]
    """Sentences below the facts."""


class Line(NamedTuple):
    """A line of the chart."""

    kind: str
    words: str
    points: str


class Chart(NamedTuple):
    """Shares of right tokens over the chunks of a store, in a box of 1000 by 100."""

    title: str
    lines: list[Line]
    low: str
    """The share at the bottom; that at the top is 100 %."""


def write_store_page(
    path: str | os.PathLike,
    model: str = "",
    against: str = "",
    out: str | os.PathLike = "",
) -> Path:
    """Write the page of a store and return its path.

    Args:
      path: the store.
      model: a trained stage with the store's encoder; by default the released model that has it.
      against: the text that was compressed; by default the files of its name beside the store, if
        they are cut as it is.
      out: path of the page; by default `novel.html` beside `novel.store`.

    Raises:
      CheckpointError: there is no such stage, or no decoder of it reads memories of a text.
      CorpusError: the text cannot be read.
      ReportError: no model is named and no released one has the encoder, or `out` exists and is no
        page of memjax.
      StoreError: the store is damaged, empty or of another encoder, or the text is another.
    """
    path = Path(path).expanduser()
    page = Path(out) if out else path.with_name(path.name.removesuffix(".store") + ".html")
    _check_page(page)
    store = open_store(path)
    StoreError.require(
        len(store), f"{path}: no chunk, expected some. Compress a text that has one."
    )
    trained = load(model) if model else _released(store, path)
    store.provenance.require_same(trained.provenance, str(path), fewer=True)
    if against:
        original, note = read_original(trained, store, against), ""
    else:
        original, note = find_original(trained, store, path.parent)
    given = give_back(trained, store)
    sample, reason = recall_sample(trained, store)
    nearest, far = None, f"Nearest memories are shown of stores of up to {NEAREST_LIMIT:,} chunks."
    if len(store) <= NEAREST_LIMIT and VECTORS in store.provenance.leaves:
        nearest, far = neighbours(store, NEAREST), ""
    notes = [_stages(trained, store, given.how), *filter(None, (note, reason, far))]
    contents = Contents(given, original, sample, nearest, notes)
    tokenizer, side = trained.required_tokenizer, trained.padding_side
    text = page_text(path.name, bytes_of(path), store, tokenizer, side, contents)
    return write_page(page, text)


def page_text(
    name: str, size: int, store: MemoryStore, tokenizer: Tokenizer, side: str, contents: Contents
) -> str:
    """Return the page of a store.

    Args:
      name: the title.
      size: bytes of its files.
      store: the store, of at least one chunk.
      tokenizer: its tokenizer.
      side: the side of padding in its chunks.
      contents: what the page shows of it.
    """
    given, original, sample, nearest, notes = contents
    data = page_data(store, tokenizer, side, given.tokens, original, sample, nearest)
    # In a script tag "<" could end it.
    packed = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return render(
        "report/store.html.jinja",
        {},
        version=__version__,
        name=name,
        lead=_lead(store, given.tokens, original),
        facts=_facts(size, store),
        notes=notes,
        chart=_chart(store, given, original, sample),
        count=numbers.count(len(store)),
        last=len(store) - 1,
        middle=numbers.count(len(store) // 2),
        known=original is not None,
        data=packed,
    )


def _check_page(page: Path) -> None:
    """Raise ReportError if a file is there that is no page, and OSError if none can be written."""
    check_writable(page)
    if page.is_file():
        with regular(page).open(encoding="utf-8", errors="replace") as stream:
            ReportError.require(
                MARK in stream.read(1000),
                f"{page}: exists and is no page of memjax, expected none there. Name another file"
                " by --out=FILE.",
            )


def _released(store: MemoryStore, path: Path) -> TrainedModel:
    """Return the released model whose encoder made a store."""
    for name in released.names():
        found = load(name)
        try:
            store.provenance.require_same(found.provenance, str(path), fewer=True)
        except StoreError:
            continue
        return found
    made = store.provenance
    raise ReportError(
        f"{path}: made by the encoder of stage {made.stage} ({made.family}, step {made.step}),"
        f" expected that of a released model ({', '.join(released.names()) or 'none'}). Name a"
        " stage with that encoder by --model=PATH."
    )


def _lead(store: MemoryStore, given: Int[np.ndarray, "N L"], original: Original | None) -> str:
    chunks = numbers.count(len(store))
    if original is None:
        return f"The text that {chunks} memories give back. No original is there to compare it."
    counts = store.spans[:, 2][original.there]
    wrong = wrong_tokens(given, original.tokens)[original.there]
    right, whole = 1 - wrong.sum() / counts.sum(), (wrong == 0).mean()
    return (
        f"{numbers.percent(float(right))} of the tokens come back from {chunks} memories, and"
        f" {numbers.percent(float(whole))} of the chunks without an error."
    )


def _facts(size: int, store: MemoryStore) -> dict[str, str]:
    """Return what is known of a store, by labels."""
    made = store.provenance
    shapes = " and ".join(" × ".join(map(str, shape)) for shape in made.leaves.values())
    return {
        "chunks": f"{len(store):,} of {made.chunk_length} tokens",
        "documents": f"{len(store.documents):,}",
        "tokens": f"{store.tokens:,}",
        "bytes of text": f"{store.text_bytes:,}",
        "bytes of the store": f"{size:,}",
        "a memory": f"{store.nbytes / len(store):,.0f} bytes: {shapes} {store.dtype}",
    }


def _stages(model: TrainedModel, store: MemoryStore, how: str) -> str:
    """Return a sentence on the encoder and on what gives the text back."""
    made = store.provenance
    return (
        f"Compressed by the encoder of stage {made.stage} ({made.family}, step {made.step}), sha256"
        f" {made.sha256[:12]}. Given back by stage {model.stage} ({model.family}, step"
        f" {model.step}), {how}."
    )


def _chart(
    store: MemoryStore,
    given: GivenBack,
    original: Original | None,
    sample: Sample | None,
) -> Chart | None:
    """Return the lines of the chart; without the original, how far both ways to recall agree."""
    counts, every = store.spans[:, 2], np.arange(len(store))
    found = []
    if original is not None:
        own = every[original.there]
        wrong = wrong_tokens(given.tokens, original.tokens)[own]
        found.append(("ours", given.how, own, wrong))
    if sample is not None:
        other = given.tokens if original is None else original.tokens
        wrong = wrong_tokens(sample.tokens, other[sample.chunks])
        there = slice(None) if original is None else original.there[sample.chunks]
        words = "each chunk among all memories of the store"
        words += f" ({len(sample.chunks)} chunks)" if len(sample.chunks) < len(store) else ""
        found.append(("causal", words, sample.chunks[there], wrong[there]))
    found = [line for line in found if len(line[2])]
    if not found:
        return None
    shares = [_shares(len(store), chunks, wrong, counts[chunks]) for *_, chunks, wrong in found]
    least = min(float(np.nanmin(share)) for share in shares)
    low = min(np.floor(20 * least) / 20, 0.95) if least >= 0.5 else 0.0
    lines = []
    for (kind, words, chunks, wrong), share in zip(found, shares, strict=True):
        whole = numbers.percent(float(1 - wrong.sum() / counts[chunks].sum()))
        lines.append(Line(kind, f"{words}: {whole}", _points(share, low)))
    title = "Share of tokens right, by place in the store"
    if original is None:
        title = "Share of tokens that are the same among all memories, by place in the store"
    return Chart(title, lines, numbers.percent(float(low), 0))


def _shares(
    total: int,
    chunks: Int[np.ndarray, " n"],
    wrong: Int[np.ndarray, " n"],
    counts: Int[np.ndarray, " n"],
) -> Float[np.ndarray, " B"]:
    """Return the share of right tokens of each bin; NaN where no chunk is."""
    bins = min(BINS, total)
    place = chunks * bins // total
    errors, tokens = (np.bincount(place, part, bins) for part in (wrong, counts))
    with np.errstate(invalid="ignore"):
        return 1 - errors / tokens


def _points(shares: Float[np.ndarray, " B"], low: float) -> str:
    """Return the points of a line; one of a single bin spans the box."""
    places = (np.arange(len(shares)) + 0.5) * 1000 / len(shares)
    heights = 100 * (1 - shares) / (1 - low)
    pairs = [
        (x, y) for x, y in zip(places.tolist(), heights.tolist(), strict=True) if np.isfinite(y)
    ]
    if len(pairs) == 1:
        pairs = [(0.0, pairs[0][1]), (1000.0, pairs[0][1])]
    return " ".join(f"{x:.1f},{y:.2f}" for x, y in pairs)
