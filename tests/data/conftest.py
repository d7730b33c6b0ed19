"""A small corpus that costs nothing, and what is built of it once for all tests."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memjax.data import Tokenizer, open_rows, train_tokenizer
from memjax.data.packing import Layout
from memjax.data.rows import Shard, describe, shard_name
from memjax.files import write_json

SENTENCE = (
    "the memory of a chunk is one vector that the decoder reads in place of tokens and"
    " copies without loss"
)


def story(seed: int, words: int = 120) -> str:
    """Text of that many words, the same for the same seed."""
    return " ".join(np.random.default_rng(seed).choice(SENTENCE.split(), words)) + f" ({seed}).\n"


@pytest.fixture(scope="session")
def stories() -> list[str]:
    return [story(seed) for seed in range(60)]


@pytest.fixture(scope="session")
def tokenizer(stories) -> Tokenizer:
    return train_tokenizer(stories, 320)


@pytest.fixture(scope="session")
def write_rows() -> Callable[..., dict[str, Any]]:
    """Writes documents [tokens] as the rows of one split, in one file."""

    def write(
        folder: Path,
        split: str,
        arrays: Iterable[np.ndarray],
        row_tokens: int,
        tokenizer: Tokenizer,
        mode: str = "packed",
        padding: str = "right",
    ) -> dict[str, Any]:
        layout = Layout(row_tokens, mode, padding)
        shard = Shard(folder / shard_name(split, 0, 1), layout, tokenizer)
        for array in arrays:
            shard.add([array])
        info = describe([shard.finish()], layout, tokenizer.fingerprint)
        write_json(folder / f"{split}.json", info)
        return info

    return write


@pytest.fixture(scope="session")
def numbered_rows(tmp_path_factory, tokenizer, write_rows):
    """37 rows of 4 tokens; row i is i, i, i, i."""
    folder = tmp_path_factory.mktemp("numbered")
    write_rows(folder, "train", [np.repeat(np.arange(37, dtype=np.int32), 4)], 4, tokenizer)
    return open_rows(folder, "train", tokenizer.fingerprint)
