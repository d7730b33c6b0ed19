"""The vocabulary of prepared data: given, trained by an earlier process, or trained now."""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from memjax.config import Data
from memjax.data.blocks import split_blocks, texts
from memjax.data.sources import open_source, parse_mixture
from memjax.data.sources.base import Source
from memjax.data.splits import is_validation
from memjax.data.tokenizers import (
    BYTE_LEVEL,
    FILES,
    Tokenizer,
    TokenizerError,
    load_tokenizer,
    train_tokenizer,
)
from memjax.files import read_json, write_json


@dataclasses.dataclass(frozen=True)
class Parts:
    """The corpora of a mixture, or the only one."""

    names: tuple[str, ...]
    weights: tuple[float, ...]
    sources: tuple[Source, ...]

    @classmethod
    def of(cls, data: Data) -> Parts:
        """Open the corpora of these settings."""
        pairs = parse_mixture(data.corpus)
        sources = (open_source(corpus, data.text_field, data.skip_damaged) for _, corpus in pairs)
        return cls(
            tuple(corpus for _, corpus in pairs),
            tuple(float(weight) for weight, _ in pairs),
            tuple(sources),
        )

    def signatures(self) -> list[list[Any]]:
        """Return values that change when the text changes, as JSON has them."""
        # As they come back from JSON.
        return json.loads(json.dumps([source.mtime_signature() for source in self.sources]))

    def folders(self, rows: Path) -> list[Path]:
        """Return the folder of the rows of each part."""
        return (
            [rows]
            if len(self.names) == 1
            else [rows / f"part-{number}" for number in range(len(self.names))]
        )


def open_vocabulary(
    data: Data, parts: Parts, folder: Path, log: Callable[[str], None]
) -> Tokenizer:
    """Return the given vocabulary, one that an earlier process trained, or a new one.

    It is then in the folder.
    """
    note = folder / "vocabulary.json"
    made = {"stamps": parts.signatures()}
    with contextlib.suppress(TokenizerError):
        stored = load_tokenizer(folder)
        ours = made | {"fingerprint": stored.fingerprint}
        if not is_given(data) and read_json(note, TokenizerError) == ours:
            return stored
    if is_given(data):
        tokenizer = load_tokenizer(data.tokenizer)
        check_size(tokenizer, data)
        if not tokenizer.exact:
            log(f"data: {data.tokenizer} loses parts of texts; bytes are of what it keeps")
    else:
        log(f"data: reading {data.corpus} to train a vocabulary of {data.vocab_size}")
        started = time.monotonic()
        tokenizer = train_tokenizer(
            training_texts(parts, data.validation_share), data.vocab_size, data.tokenizer
        )
        log(
            f"data: trained a vocabulary of {data.vocab_size} in {time.monotonic() - started:.1f} s"
        )
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    tokenizer.save(folder)
    write_json(note, made | {"fingerprint": tokenizer.fingerprint})
    return tokenizer


def is_given(data: Data) -> bool:
    """Return whether the vocabulary is a file."""
    return data.tokenizer not in ("", BYTE_LEVEL)


def check_size(tokenizer: Tokenizer, data: Data) -> None:
    """Raise TokenizerError if the tokenizer has more ids than `data.vocab_size`."""
    TokenizerError.require(
        tokenizer.vocabulary <= data.vocab_size,
        f"config.data.vocab_size={data.vocab_size}: config.data.tokenizer={data.tokenizer!r}"
        " has"
        f" {tokenizer.vocabulary} ids, reserved ones included. Use {tokenizer.vocabulary} or"
        " more",
    )


def training_texts(parts: Parts, share: float) -> Iterator[str]:
    """Yield documents to train a vocabulary on.

    Those of a mixture come in proportion to the weights of its parts, as long as each lasts.
    """

    def of(source: Source) -> Iterator[str]:
        return (
            text for text in texts(source, split_blocks(source)) if not is_validation(text, share)
        )

    if len(parts.sources) == 1:
        yield from of(parts.sources[0])
        return
    streams = [of(source) for source in parts.sources]
    # Characters taken so far over the weight: the part with the least is next.
    taken = [(0.0, number) for number in range(len(streams))]
    while taken:
        so_far, number = heapq.heappop(taken)
        text = next(streams[number], None)
        if text is not None:
            yield text
            heapq.heappush(taken, (so_far + len(text) / parts.weights[number], number))
