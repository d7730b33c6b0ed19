"""A sentencepiece vocabulary from which any text comes back byte for byte.

Decoding joins the bytes that each id stands for instead of asking sentencepiece, which knows the space and its own mark for it (U+2581) as
one: that mark is spelled in bytes, which every vocabulary here has.
"""

from __future__ import annotations

import collections
import functools
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2

from memjax.data.tokenizer import RESERVED, Tokenizer, TokenizerError, appended

_SPACE = "\u2581"
_FIXED = len(RESERVED) + 256
_SEGMENT = re.compile(f"{_SPACE}|[^{_SPACE}]{{1,16384}}")
"""Cuts text into what sentencepiece is given at once: bounded in length, and the mark on its own."""
_COVERAGE = 0.9995
"""Share of the characters met in training that get ids of their own, if there is room; the others are spelled in bytes."""
_UNTRAINABLE = "\u2585"
"""Sentencepiece marks unknown text with it and drops a training text that holds it."""
_TRAINING_CHARACTERS = 100_000_000
"""Training holds its text in memory and gains nothing from more."""


class SentencePieceTokenizer(Tokenizer):
    """A model that `trained` made, whose ids 0 to 5 are RESERVED, or any other with a piece for every byte.

    What another model lacks of RESERVED gets ids above its own. Its habit of putting a space before every text is left out, so that texts
    come back as they were.
    """

    file_name = "tokenizer.model"

    def __init__(self, model: bytes, origin: str = "the model"):
        """Takes a serialized model; `origin` is what errors call it.

        Raises:
          TokenizerError: it is damaged or lacks the bytes.
        """
        super().__init__(model)
        remedy = "give a tokenizer.model that memjax wrote or one with byte_fallback, or train a vocabulary on the corpus"
        try:
            parsed = sentencepiece_model_pb2.ModelProto.FromString(model)  # pyrefly: ignore
            parsed.normalizer_spec.add_dummy_prefix = False
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=parsed.SerializeToString())
        except (RuntimeError, TypeError, DecodeError) as error:
            raise TokenizerError(f"{origin} is no sentencepiece model, or a damaged one; {remedy}") from error
        processor, spec = self._processor, parsed.normalizer_spec
        known = range(processor.get_piece_size())  # An empty model loads, with no pieces.
        self._byte_ids = {int(processor.id_to_piece(i)[3:-1], 16): i for i in known if processor.is_byte(i)}
        if len(self._byte_ids) != 256:
            raise TokenizerError(
                f"{origin} has {len(self._byte_ids)} of the 256 bytes (byte_fallback), so not every text has ids; {remedy}"
            )
        controls = [i for i in known if processor.is_control(i) or processor.is_unknown(i)]
        own = {processor.id_to_piece(i): i for i in controls}
        named = {
            "<s>": processor.bos_id(),
            "</s>": processor.eos_id(),
            "<pad>": processor.pad_id(),
            "<unk>": processor.unk_id(),
        }
        found = {name: own.get(name) for name in RESERVED} | {name: i for name, i in named.items() if i >= 0}
        self._names = self._reserve(found, (), len(known)) | {i: processor.id_to_piece(i) for i in controls}
        first = max((i for i in controls if i < min(self._byte_ids.values())), default=-1) + 1
        self.content = (first, len(known))
        self.exact = spec.name == "identity" and not spec.remove_extra_whitespaces

    @classmethod
    def trained(cls, texts: Iterable[str], vocabulary: int) -> SentencePieceTokenizer:
        """A BPE vocabulary; see `Tokenizer.train`.

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

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[np.ndarray]:
        """`encode` of each text, on that many threads."""
        segments = [_SEGMENT.findall(text) for text in texts]
        encoded = iter(self._processor.encode(list(itertools.chain.from_iterable(segments)), out_type=int, num_threads=threads))
        spelled = [self._byte_ids[byte] for byte in _SPACE.encode()]
        arrays = []
        for parts in segments:
            # `parts` comes first: zip must not take from `encoded` beyond this text.
            ids = [spelled if part == _SPACE else own for part, own in zip(parts, encoded, strict=False)]
            arrays.append(np.fromiter(itertools.chain.from_iterable(ids), np.int32))
        return arrays

    @property
    def _reserved(self) -> Mapping[int, str]:
        return self._names

    @functools.cached_property
    def _bytes(self) -> list[bytes]:
        processor = self._processor
        size = processor.get_piece_size()
        words = [processor.id_to_piece(i).replace(_SPACE, " ").encode() for i in range(size)]
        for byte, i in self._byte_ids.items():
            words[i] = bytes([byte])
        words += [b""] * appended(self._names, size)
        return [b"" if i in self._names else word for i, word in enumerate(words)]


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
