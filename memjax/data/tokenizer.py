"""Vocabularies: text to ids and back, with ids that no text makes.

Two kinds of file are read: a sentencepiece model (`tokenizer.model`, memjax/data/sentencepiece_tokenizer.py), which `train` writes, and a
Hugging Face `tokenizer.json` (memjax/data/byte_level_tokenizer.py, extra `hf`). Every id stands for a fixed string of bytes, so decoding
joins them, and a text's bytes are counted without decoding it.

V: entries of the vocabulary.
"""

from __future__ import annotations

import abc
import functools
import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

RESERVED = ("<pad>", "<unk>", "<s>", "</s>", "<blank>", "<delimiter>")
"""What the reserved ids are called: padding, unknown text, begin and end of a document, blank and delimiter (memjax/objectives)."""
FILES = ("tokenizer.model", "tokenizer.json")
"""Names under which a run keeps its vocabulary."""


class TokenizerError(ValueError):
    """The vocabulary cannot be trained, or a file is no vocabulary that can be used; the message names the setting or the file."""


class Tokenizer(abc.ABC):
    """Text to ids and back.

    Attributes:
      pad_id: and `unk_id`, `bos_id`, `eos_id`, `blank_id`, `delimiter_id`: reserved ids. `bos_id` and `eos_id` may be one.
      content: least id that stands for text, and the one above the greatest; what is reserved lies outside.
      exact: whether any text comes back byte for byte; False where the vocabulary normalises what it is given.
    """

    file_name: ClassVar[str]
    """Which of FILES it is kept in."""
    pad_id: int
    unk_id: int
    bos_id: int
    eos_id: int
    blank_id: int
    delimiter_id: int
    content: tuple[int, int]
    exact: bool = True

    def __init__(self, model: bytes) -> None:
        self._model = model

    @staticmethod
    def train(texts: Iterable[str], vocabulary: int, kind: str = "") -> Tokenizer:
        """Trains a vocabulary of exactly `vocabulary` entries; the same texts give the same bytes, on any machine.

        Args:
          texts: of a large corpus the first 100 million characters are used.
          vocabulary: V.
          kind: `byte_level` is the published set-up's (byte-level BPE with 256 ids reserved, extra `hf`); by default sentencepiece.

        Raises:
          TokenizerError: the texts hold too little for that many entries, or `vocabulary` has no room for characters.
        """
        if kind == BYTE_LEVEL:
            from memjax.data.byte_level_tokenizer import ByteLevelTokenizer

            return ByteLevelTokenizer.trained(texts, vocabulary)
        from memjax.data.sentencepiece_tokenizer import SentencePieceTokenizer

        return SentencePieceTokenizer.trained(texts, vocabulary)

    @staticmethod
    def load(path: str | os.PathLike) -> Tokenizer:
        """Reads a vocabulary: a `.json` or `.model` file, or a folder that holds one of FILES.

        Raises:
          TokenizerError: the file is absent, damaged or of another kind.
        """
        path = Path(path)
        if path.is_dir() or not path.suffix:
            path = next((path / name for name in FILES if (path / name).exists()), path / FILES[0])
        try:
            model = path.read_bytes()
        except OSError as error:
            raise TokenizerError(
                f"{path}: cannot be read ({error.strerror}); it should hold a sentencepiece model or a tokenizer.json"
            ) from error
        if path.suffix == ".json":
            from memjax.data.byte_level_tokenizer import ByteLevelTokenizer

            return ByteLevelTokenizer(model, str(path))
        from memjax.data.sentencepiece_tokenizer import SentencePieceTokenizer

        return SentencePieceTokenizer(model, str(path))

    def save(self, path: str | os.PathLike) -> None:
        """Writes the file that `load` reads; of a folder its `file_name`."""
        path = Path(path)
        (path / self.file_name if path.is_dir() else path).write_bytes(self._model)

    @property
    def vocabulary(self) -> int:
        """V."""
        return len(self._bytes)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the model's sha256; equal fingerprints mean equal ids."""
        return hashlib.sha256(self._model).hexdigest()[:16]

    @functools.cached_property
    def byte_lengths(self) -> np.ndarray:
        """int32 [V]: bytes of UTF-8 text that each id stands for; 0 for the reserved."""
        return np.array([len(spelling) for spelling in self._bytes], np.int32)

    def encode(self, text: str) -> np.ndarray:
        """Ids int32 [tokens] of any text without lone surrogates; nothing is put before or after."""
        return self.encode_batch([text], threads=1)[0]

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[np.ndarray]:
        """`encode` of each text, on that many threads."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` [tokens]: exactly what was encoded; bytes that form no character become U+FFFD, reserved ids nothing."""
        return b"".join(self._bytes[i] for i in _integers(ids)).decode(errors="replace")

    def pieces(self, ids: Iterable[int]) -> list[str]:
        r"""One string a token, for people: text as it is, reserved ids by name, bytes of a longer character as `\xNN`."""
        return [self._piece(i) for i in _integers(ids)]

    def _piece(self, i: int) -> str:
        if i in self._reserved:
            return self._reserved[i]
        try:
            return self._bytes[i].decode()
        except UnicodeDecodeError:
            return "".join(f"\\x{byte:02x}" for byte in self._bytes[i])

    @property
    @abc.abstractmethod
    def _reserved(self) -> Mapping[int, str]:
        """Names of the ids that no text makes."""

    @property
    @abc.abstractmethod
    def _bytes(self) -> Sequence[bytes]:
        """What each id stands for, [V]; nothing where it is reserved."""

    def _reserve(self, found: Mapping[str, int | None], free: Iterable[int], vocabulary: int) -> dict[int, str]:
        """Gives every name in RESERVED an id: the vocabulary's own, else one of its `free` ones, else a new one from `vocabulary` on."""
        spare, names = list(free), {}
        ids = dict(found)
        # A vocabulary without a token for the begin of a document marks borders by the one for its end, and the other way round.
        if ids.get("<s>") is None:
            ids["<s>"] = ids.get("</s>")
        if ids.get("</s>") is None:
            ids["</s>"] = ids.get("<s>")
        for name, attribute in zip(RESERVED, ("pad", "unk", "bos", "eos", "blank", "delimiter"), strict=True):
            i = ids.get(name)
            if i is None or (name in ("<pad>", "<blank>", "<delimiter>") and i in names):
                i = spare.pop(0) if spare else vocabulary
                vocabulary += i == vocabulary
            setattr(self, f"{attribute}_id", i)
            names.setdefault(i, name)
        return names


BYTE_LEVEL = "byte_level"
"""What `train` calls the published set-up's vocabulary."""


def _integers(ids: Iterable[int]) -> list[int]:
    return np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), np.int64).tolist()


def appended(names: Mapping[int, str], vocabulary: int) -> int:
    """How many of `names` lie above the vocabulary."""
    return sum(i >= vocabulary for i in names)
