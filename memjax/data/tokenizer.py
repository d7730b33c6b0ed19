"""A sentencepiece vocabulary with reserved ids, from which any text comes back byte for byte.

Decoding joins the bytes that each id stands for instead of asking sentencepiece, which knows the space and its own
mark for it (U+2581) as one: that mark is spelled in bytes, which every vocabulary here has.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import io
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

RESERVED = ("<pad>", "<unk>", "<s>", "</s>", "<blank>", "<delimiter>")
"""Pieces of ids 0 to 5. No text encodes to them, not even their own spelling."""

_SPACE = "\u2581"
_FIRST_BYTE = len(RESERVED)
_FIXED = _FIRST_BYTE + 256
_SEGMENT = re.compile(f"{_SPACE}|[^{_SPACE}]{{1,16384}}")
"""Cuts text into what sentencepiece is given at once: bounded in length, and the mark on its own."""
_COVERAGE = 0.9995
"""Share of the characters met in training that get ids of their own, if there is room; the others are spelled in bytes."""
_UNTRAINABLE = "\u2585"
"""Sentencepiece marks unknown text with it and drops a training text that holds it."""
_TRAINING_CHARACTERS = 100_000_000
"""Training holds its text in memory and gains nothing from more."""


class TokenizerError(ValueError):
    """The vocabulary cannot be trained, or a file is not a vocabulary of ours; the message names the setting or the file."""


class Tokenizer:
    """Text to ids and back. V: entries of the vocabulary."""

    pad_id, unk_id, bos_id, eos_id, blank_id, delimiter_id = range(len(RESERVED))

    def __init__(self, model: bytes, origin: str = "the model"):
        """Takes a serialized sentencepiece model; `origin` is what errors call it.

        Raises:
          TokenizerError: it is damaged or lacks the reserved ids or the bytes.
        """
        self._model = model
        remedy = "give a tokenizer.model that memjax wrote, or delete the folder it is in so that it is built again"
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
            known = range(self._processor.get_piece_size())  # An empty model loads, with no pieces.
            head = tuple(self._processor.id_to_piece(i) for i in known[:_FIRST_BYTE])
            spelled = [self._processor.is_byte(i) for i in known]
        except (RuntimeError, TypeError) as error:
            raise TokenizerError(f"{origin} is no sentencepiece model, or a damaged one; {remedy}") from error
        if head != RESERVED:
            raise TokenizerError(f"{origin} lacks the reserved ids {dict(enumerate(RESERVED))} (has {head}); {remedy}")
        if spelled[_FIRST_BYTE:_FIXED] != [True] * 256:
            raise TokenizerError(f"{origin} lacks the 256 bytes (byte_fallback) at ids {_FIRST_BYTE} to {_FIXED - 1}; {remedy}")

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int) -> Tokenizer:
        """Trains a BPE vocabulary of exactly `vocabulary` entries; the same texts give the same bytes, on any machine.

        Of a large corpus the first 100 million characters are used.

        Raises:
          TokenizerError: the texts hold too little for that many entries, or `vocabulary` has no room for characters.
        """
        if vocabulary <= _FIXED:
            raise TokenizerError(
                f"config.data.vocabulary={vocabulary} has no room beside {len(RESERVED)} reserved ids and 256 bytes; use 300 or more"
            )
        segments = _with_common_characters(list(_training_segments(texts)), vocabulary)
        if not any(segment.strip() for segment in segments):
            raise TokenizerError(
                "there is no text to train a vocabulary on: config.data.corpus is empty, or config.data.validation_share holds out all"
            )
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(segments),
                model_writer=model,
                model_type="bpe",
                vocab_size=vocabulary,
                character_coverage=1.0,
                byte_fallback=True,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True,
                pad_id=0,
                unk_id=1,
                bos_id=2,
                eos_id=3,
                control_symbols=list(RESERVED[4:]),
                max_sentence_length=2**20,
                num_threads=1,  # Written into the model, so it must not depend on the machine.
                minloglevel=2,
            )
        except RuntimeError as error:
            largest = re.search(r"value <= (\d+)", str(error))
            what = f"the largest that works is {largest[1]}" if largest else f"sentencepiece says: {error}"
            raise TokenizerError(
                f"config.data.vocabulary={vocabulary}: the training text ({sum(map(len, segments))} characters) does not give that"
                f" many entries; {what}; give more text or a smaller vocabulary"
            ) from error
        return cls(model.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike) -> Tokenizer:
        """Reads what `save` wrote.

        Raises:
          TokenizerError: the file is absent, damaged or of another kind.
        """
        try:
            model = Path(path).read_bytes()
        except OSError as error:
            raise TokenizerError(f"{path}: cannot be read ({error.strerror}); it should hold a sentencepiece model") from error
        return cls(model, str(path))

    def save(self, path: str | os.PathLike) -> None:
        """Writes the sentencepiece model."""
        Path(path).write_bytes(self._model)

    @property
    def vocabulary(self) -> int:
        """V."""
        return self._processor.get_piece_size()

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

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[np.ndarray]:
        """`encode` of each text, on that many threads."""
        segments = [_SEGMENT.findall(text) for text in texts]
        encoded = iter(self._processor.encode(list(itertools.chain.from_iterable(segments)), out_type=int, num_threads=threads))
        spelled = [_FIRST_BYTE + byte for byte in _SPACE.encode()]
        arrays = []
        for parts in segments:
            # `parts` comes first: zip must not take from `encoded` beyond this text.
            ids = [spelled if part == _SPACE else own for part, own in zip(parts, encoded, strict=False)]
            arrays.append(np.fromiter(itertools.chain.from_iterable(ids), np.int32))
        return arrays

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` [tokens]: exactly what was encoded; bytes that form no character become U+FFFD, reserved ids nothing."""
        return b"".join(self._bytes[i] for i in _integers(ids)).decode(errors="replace")

    def pieces(self, ids: Iterable[int]) -> list[str]:
        r"""One string a token, for people: text as it is, reserved ids by name, bytes of a longer character as `\xNN`."""
        return [self._piece(i) for i in _integers(ids)]

    def _piece(self, i: int) -> str:
        if i < len(RESERVED):
            return RESERVED[i]
        try:
            return self._bytes[i].decode()
        except UnicodeDecodeError:
            return f"\\x{self._bytes[i][0]:02x}"

    @functools.cached_property
    def _bytes(self) -> list[bytes]:
        """What each id stands for, [V]."""
        words = (self._processor.id_to_piece(i).replace(_SPACE, " ").encode() for i in range(_FIXED, self.vocabulary))
        return [b""] * len(RESERVED) + [bytes([byte]) for byte in range(256)] + list(words)


def _integers(ids: Iterable[int]) -> list[int]:
    return np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), np.int64).tolist()


def _training_segments(texts: Iterable[str]) -> Iterator[str]:
    taken = 0
    for segment in itertools.chain.from_iterable(map(_SEGMENT.findall, texts)):
        if taken >= _TRAINING_CHARACTERS:
            return
        if segment != _SPACE:
            taken += len(segment)
            yield segment


def _with_common_characters(segments: list[str], vocabulary: int) -> list[str]:
    """`segments` with a space for every character that gets no id of its own.

    Characters take at most half of the entries, so that a script of thousands leaves room for words. Sentencepiece's own
    setting for this refuses to leave out more than 2 percent of a text.
    """
    counts: collections.Counter[str] = collections.Counter()
    for segment in segments:
        counts.update(segment)
    wanted = _COVERAGE * counts.total()
    rare = {ord(_UNTRAINABLE): " "}
    covered = 0
    for rank, (character, count) in enumerate(counts.most_common()):
        if covered >= wanted or rank >= (vocabulary - _FIXED) // 2:
            rare[ord(character)] = " "
        covered += count
    return [segment.translate(rare) for segment in segments]
