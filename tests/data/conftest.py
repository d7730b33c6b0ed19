"""A small corpus that costs nothing, and what is built of it once for all tests."""

import numpy as np
import pytest

from memjax.data import Tokenizer, open_rows, write_rows

SENTENCE = "the memory of a chunk is one vector that the decoder reads in place of tokens and copies without loss"


def story(seed: int, words: int = 120) -> str:
    """Text of that many words, the same for the same seed."""
    return " ".join(np.random.default_rng(seed).choice(SENTENCE.split(), words)) + f" ({seed}).\n"


@pytest.fixture(scope="session")
def stories() -> list[str]:
    return [story(seed) for seed in range(60)]


@pytest.fixture(scope="session")
def tokenizer(stories) -> Tokenizer:
    return Tokenizer.train(stories, 320)


@pytest.fixture(scope="session")
def numbered_rows(tmp_path_factory, tokenizer):
    """37 rows of 4 tokens; row i is i, i, i, i."""
    folder = tmp_path_factory.mktemp("numbered")
    write_rows(folder, "train", [np.repeat(np.arange(37, dtype=np.int32), 4)], 4, tokenizer)
    return open_rows(folder, "train", tokenizer.fingerprint)
