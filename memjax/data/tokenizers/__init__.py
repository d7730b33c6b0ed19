"""Tokenizers, by their files: sentencepiece models and byte-level `tokenizer.json`."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
from collections.abc import Iterable
from pathlib import Path

from memjax import released
from memjax.data.tokenizers.base import BORDERS, FILES, LONGEST, Borders, Tokenizer, TokenizerError
from memjax.data.tokenizers.byte_level import ByteLevelTokenizer
from memjax.data.tokenizers.sentencepiece import SentencePieceTokenizer
from memjax.files import read_json, regular

__all__ = [
    "BYTE_LEVEL",
    "FILES",
    "Tokenizer",
    "TokenizerError",
    "load_tokenizer",
    "train_tokenizer",
]

BYTE_LEVEL = "byte_level"
"""The name of the published set-up's vocabulary in `config.data.tokenizer`."""


_CONFIGS = ("tokenizer_config.json", "config.json")
_SETTINGS = (_CONFIGS[0], "generation_config.json", _CONFIGS[1])
"""Files beside a vocabulary that name the begin and end of a document."""


def train_tokenizer(texts: Iterable[str], vocabulary: int, kind: str = "") -> Tokenizer:
    """Train a vocabulary of exactly `vocabulary` entries.

    The same texts give the same bytes on any machine.

    Args:
      texts: the corpus; training uses its first 100 million characters.
      vocabulary: V.
      kind: `byte_level` for the published set-up (byte-level BPE with 256 reserved ids, extra
        `hf`); by default sentencepiece.

    Raises:
      TokenizerError: the texts are too short for that many entries, or `vocabulary` is too small
        for characters.
    """
    if kind == BYTE_LEVEL:
        return ByteLevelTokenizer.trained(texts, vocabulary)
    return SentencePieceTokenizer.trained(texts, vocabulary)


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """Read a vocabulary: a `.json` or `.model` file, or a folder with one of FILES, such as that of
    a released model, by its name.

    Begin and end of a document are those that settings of Hugging Face beside it name, if they are
    special tokens of it, or else its own.

    Raises:
      TokenizerError: the file is absent, damaged or of another kind.
    """
    path = Path(released.folder_of(path) or path).expanduser()
    if path.is_dir() or not path.suffix:
        path = next((path / name for name in FILES if (path / name).exists()), path / FILES[0])
    try:
        size = regular(path).stat().st_size
        TokenizerError.require(
            size <= LONGEST,
            f"{path}: {size} bytes, expected at most {LONGEST}. Give the file of a vocabulary",
        )
        model = path.read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"{path}: cannot be read ({error.strerror}); it should hold a sentencepiece model or a"
            " tokenizer.json"
        ) from error
    kind = ByteLevelTokenizer if path.suffix == ".json" else SentencePieceTokenizer
    tokenizer = kind(model, str(path), _borders(path.parent))
    tokenizer.begins = _begins(path.parent, tokenizer)
    if not tokenizer.names_end and multiprocessing.parent_process() is None:
        _warn_once(
            f"{path}: no end of a document, expected one in it or beside it. A model trained"
            f" elsewhere never ends a text by id {tokenizer.eos_id}; name its own, a special token,"
            ' as "eos_token" in tokenizer_config.json there'
        )
    return tokenizer


_warn_once = functools.cache(logging.getLogger("memjax").warning)


def _begins(folder: Path, tokenizer: Tokenizer) -> bool | None:
    """Return `Tokenizer.begins` by the settings in a Hugging Face folder, as transformers does."""
    settings, model = (
        read_json(folder / name, TokenizerError) if (folder / name).is_file() else {}
        for name in _CONFIGS
    )
    if not tokenizer.names_begin or not (settings or "model_type" in model):
        return None
    # The classes of sentencepiece models have a begin and put it, unless the settings differ.
    llama = tokenizer.file_name == FILES[0] or "Llama" in str(settings.get("tokenizer_class"))
    if settings.get("bos_token", llama or tokenizer.adds_begin or None) is None:
        return None
    added = settings.get("add_bos_token")
    return added if isinstance(added, bool) else llama or tokenizer.adds_begin


def _borders(folder: Path) -> Borders:
    """Return begin and end of a document by the settings in a Hugging Face folder."""
    found: dict[str, list[str | int]] = {name: [] for name in BORDERS}
    for file in (folder / name for name in _SETTINGS):
        settings = read_json(file, TokenizerError) if file.is_file() else {}
        for name, key in zip(BORDERS, ("bos_token", "eos_token"), strict=True):
            for value in (settings.get(key), settings.get(f"{key}_id")):
                value = value.get("content") if isinstance(value, dict) else value
                values = value if isinstance(value, list) else [value]
                found[name] += [x for x in values if type(x) in (int, str)]
    return found
