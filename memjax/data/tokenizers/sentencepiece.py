"""A sentencepiece vocabulary from which any text is restored byte for byte.

Decoding joins the bytes of each id and does not use sentencepiece, which treats the space and its
own mark for it (U+2581) as equal. That mark is spelled in bytes, which every vocabulary here has,
so that it comes back. Sentencepiece gets at most 16,384 characters at a time, so that its memory is
bounded. In a text with that mark, or a longer one, ids differ from those of sentencepiece alone.
"""

from __future__ import annotations

import collections
import io
import itertools
import re
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # pyrefly: ignore

from memjax.data.tokenizers.base import (
    RESERVED,
    Borders,
    Tokenizer,
    TokenizerError,
    named,
    require_text,
    training_part,
)

_SPACE = "\u2581"
_FIXED = len(RESERVED) + 256
_SEGMENT = re.compile(f"{_SPACE}|[^{_SPACE}]{{1,16384}}")
"""Splits text into the pieces that sentencepiece gets: bounded in length, and the mark on its own.
"""
_COVERAGE = 0.9995
"""Share of the characters of the training text that get their own ids, if there is room; the others
are spelled in bytes."""
_UNTRAINABLE = "\u2585"
"""Sentencepiece marks unknown text with it, and drops a training text that contains it."""


class SentencePieceTokenizer(Tokenizer):
    """A model from `trained`, or any other with a piece for every byte.

    Ids 0 to 5 of a model from `trained` are RESERVED. Names of RESERVED that another model lacks
    get ids above its own. Its space before a document is kept, see `spaced`.
    """

    file_name = "tokenizer.model"
    kind = "sentencepiece model"

    def _open(self, borders: Borders) -> str:
        parsed = ModelProto.FromString(self._model)
        spec = parsed.normalizer_spec
        first = sentencepiece.SentencePieceProcessor(model_proto=self._model)
        self.spaced = spec.add_dummy_prefix and not parsed.trainer_spec.treat_whitespace_as_suffix
        spec.add_dummy_prefix, dummy = False, spec.add_dummy_prefix
        processor = sentencepiece.SentencePieceProcessor(model_proto=parsed.SerializeToString())
        self._processor, self._first = processor, first if self.spaced else processor
        self._size = self._sized(processor.get_piece_size())  # An empty model has no pieces.
        known = range(self._size)
        self._byte_ids = {
            int(processor.id_to_piece(i)[3:-1], 16): i for i in known if processor.is_byte(i)
        }
        TokenizerError.require(
            len(self._byte_ids) == 256,
            f"{self._origin} has {len(self._byte_ids)} of the 256 bytes (byte_fallback), so not"
            " every text has ids; give a tokenizer.model that memjax wrote or one with"
            " byte_fallback, or train a vocabulary on the corpus",
        )
        controls = {
            processor.id_to_piece(i): i
            for i in known
            if processor.is_control(i) or processor.is_unknown(i)
        }
        ids = (processor.pad_id(), processor.unk_id(), processor.bos_id(), processor.eos_id())
        own = {name: [name] for name in RESERVED} | {
            name: [i, name] for name, i in zip(RESERVED, ids, strict=False)
        }
        said = named(borders, controls)
        found = named(own, controls) | said
        if found != named(own, controls):
            pieces = {name: processor.id_to_piece(i) for name, i in said.items()}
            parsed.trainer_spec.bos_piece = pieces.get("<s>", parsed.trainer_spec.bos_piece)
            parsed.trainer_spec.eos_piece = pieces.get("</s>", parsed.trainer_spec.eos_piece)
            spec.add_dummy_prefix = dummy
            self._model = parsed.SerializeToString()
        self._names = self._reserve(found) | {i: piece for piece, i in controls.items()}
        below = (i for i in controls.values() if i < min(self._byte_ids.values()))
        self.content = (max(below, default=-1) + 1, self._size)
        self.exact = not spec.precompiled_charsmap and not spec.remove_extra_whitespaces
        return ""

    @classmethod
    def trained(cls, texts: Iterable[str], vocabulary: int) -> SentencePieceTokenizer:
        """Train a BPE vocabulary; see `train_tokenizer`.

        Raises:
          TokenizerError: the texts are too short for that many entries, or `vocabulary` is too
            small for characters.
        """
        TokenizerError.require(
            vocabulary > _FIXED,
            f"config.data.vocab_size={vocabulary} has no room beside {len(RESERVED)} reserved"
            " ids and 256 bytes; use 300 or more",
        )
        segments = (part for text in texts for part in _SEGMENT.findall(text) if part != _SPACE)
        segments = _with_common_characters(list(training_part(segments)), vocabulary)
        TokenizerError.require(
            any(segment.strip() for segment in segments),
            "there is no text to train a vocabulary on: config.data.corpus is empty, or"
            " config.data.validation_share holds out all",
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
                num_threads=1,  # The model stores it, so it must not depend on the machine.
                minloglevel=2,
            )
        except RuntimeError as error:
            largest = re.search(r"value <= (\d+)", str(error))
            what = (
                f"the largest that works is {largest[1]}"
                if largest
                else f"sentencepiece reports: {error}"
            )
            raise TokenizerError(
                f"config.data.vocab_size={vocabulary}: the training text"
                f" ({sum(map(len, segments))} characters) gives fewer"
                f" entries; {what}. Use more text or a smaller vocabulary"
            ) from error
        return cls(model.getvalue())

    def encode_batch(
        self, texts: Sequence[str], threads: int = 1, start: bool = True
    ) -> list[np.ndarray]:
        """Return `encode` of each text, on that many threads."""
        require_text(texts)
        segments = [_SEGMENT.findall(text) for text in texts]
        # Parts that start a document; none where they are as all others.
        count = int(start and self.spaced)
        first, others = (
            iter(processor.encode(list(parts), out_type=int, num_threads=threads))
            for processor, parts in (
                (self._first, (part for parts in segments for part in parts[:count])),
                (self._processor, (part for parts in segments for part in parts[count:])),
            )
        )
        spelled = [self._byte_ids[byte] for byte in _SPACE.encode()]
        arrays = []
        for parts in segments:
            encoded = itertools.chain(itertools.islice(first, count), others)
            # `parts` comes first: zip must not consume `encoded` beyond this text.
            ids = [
                spelled if part == _SPACE else own
                for part, own in zip(parts, encoded, strict=False)
            ]
            arrays.append(np.fromiter(itertools.chain.from_iterable(ids), np.int32))
        return arrays

    def _ends(self, text: str) -> list[int]:
        found, at = [], 0
        for place, part in enumerate(_SEGMENT.findall(text)):
            processor = self._processor if place else self._first
            pieces = processor.encode(part, out_type="proto").pieces
            own = [1, 2, 3] if part == _SPACE else [piece.end for piece in pieces]
            found += [at + end for end in own]
            at += len(part.encode())
        return found

    def _spelling(self, i: int) -> bytes:
        piece = self._processor.id_to_piece(i)
        if self._processor.is_byte(i):
            return bytes([int(piece[3:-1], 16)])
        return piece.replace(_SPACE, " ").encode()


def _with_common_characters(segments: list[str], vocabulary: int) -> list[str]:
    """Return `segments` with a space for every character that gets no id of its own.

    Characters take at most half of the entries, so that a script of thousands leaves room for
    words. Sentencepiece's own setting for this cannot leave out more than 2 percent of a text.
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
