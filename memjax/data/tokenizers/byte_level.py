"""Byte-level BPE in a Hugging Face `tokenizer.json`, as in GPT-2, Llama 3 and Qwen.

It needs the extra `hf` (the `tokenizers` package). Every piece is spelled in 256 printable
characters that stand for the bytes (Radford et al. 2019), so the bytes of an id follow without
decoding. `trained` makes the published set-up's vocabulary: ids 0 to 255 are reserved, 0 the begin
and 1 the end of a document; bytes and merges follow (Badger 2026, data).
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from memjax.data.tokenizers.base import (
    BORDERS,
    RESERVED,
    Borders,
    Tokenizer,
    TokenizerError,
    named,
    require_text,
    training_part,
)
from memjax.files import parse_json

KNOWN: Mapping[str, tuple[str, ...]] = {
    "<pad>": ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|pad|>"),
    "<unk>": ("<unk>", "[UNK]"),
    "<s>": ("<|begin_of_text|>", "<s>", "<bos>", "[BOS]", "<|startoftext|>"),
    "</s>": ("<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>", "[EOS]"),
    "<blank>": ("<blank>",),
    "<delimiter>": ("<delimiter>",),
}
"""Names of the reserved ids in vocabularies."""
FREE = "reserved_special_token"
"""Part of the names of special tokens that a vocabulary leaves unused."""
SPECIALS = 256
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The expression by which Llama 3's vocabulary splits text into words."""


class ByteLevelTokenizer(Tokenizer):
    """A `tokenizer.json` of byte-level BPE.

    No text produces its special tokens, not even their spelling.
    """

    file_name = "tokenizer.json"
    kind = "tokenizer.json"

    def _open(self, borders: Borders) -> str:
        library = _library(self._origin)
        described = parse_json(self._model, self._origin, ValueError)
        kinds = {step["type"] for step in _steps(described, "normalizer")}
        model = described["model"].get("type", "BPE")  # GPT-2's has none.
        # The library would panic where one of these two is damaged.
        panics = "Precompiled" in kinds or described["model"].get("continuing_subword_prefix")
        TokenizerError.require(
            model == "BPE"
            and not panics
            and "ByteLevel" in {step["type"] for step in _steps(described, "pre_tokenizer")},
            f"{self._origin}: a {model} vocabulary that is not byte-level; give a"
            " byte-level BPE (GPT-2, Llama 3, Qwen), or a sentencepiece model with byte_fallback",
        )
        self._sized(max(described["model"]["vocab"].values()) + 1)
        self._tokenizer: Any = library.Tokenizer.from_buffer(self._model)
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._size = self._sized(max(self._tokenizer.get_vocab().values()) + 1)
        added = {token["id"]: token for token in described.get("added_tokens") or ()}
        for i, token in added.items():
            # The library numbers those itself that its model lacks.
            own = self._tokenizer.token_to_id(token["content"])
            TokenizerError.require(
                i == own,
                f"{self._origin}: added token {token['content']!r} has id {i}, expected {own}."
                " Number added tokens after the others, without gaps",
            )
        self._added = {i: token["content"] for i, token in added.items() if not token["special"]}
        special = {token["content"]: i for i, token in added.items() if token["special"]}
        around = _template(described)
        self.adds_begin = bool(around["<s>"])
        own = {name: [*around.get(name, ()), *KNOWN[name]] for name in RESERVED}
        found = named(own, special) | named(borders, special)
        if found != named(own, special):
            begin, end = ([x for x, i in special.items() if i == found.get(y)] for y in BORDERS)
            self._tokenizer.post_processor = library.processors.TemplateProcessing(
                single=[*begin, "$A", *end], special_tokens=[(x, special[x]) for x in begin + end]
            )
            self._model = self._tokenizer.to_str().encode()
        # One that leaves the places of tokens in a text as they are.
        self._tokenizer.post_processor = library.processors.ByteLevel(trim_offsets=False)
        free = sorted(
            i for content, i in special.items() if FREE in content and i not in found.values()
        )
        self._names = self._reserve(found, free) | {i: content for content, i in special.items()}
        for character, byte in _alphabet().items():
            TokenizerError.require(
                self._tokenizer.token_to_id(character) not in (None, *self._names),
                f"{self._origin}: has no piece for byte {byte:#04x}, so not every text has ids;"
                " give another vocabulary",
            )
        # Special tokens stand at one end or both.
        texts = [i for i in range(self._size) if i not in self._names]
        self.content = (
            texts[0],
            next((i for i in range(texts[0], self._size) if i in self._names), self._size),
        )
        self.exact = described.get("normalizer") is None
        return " a ".join(["", *self._added.values(), ""])

    @classmethod
    def trained(cls, texts: Iterable[str], vocabulary: int) -> ByteLevelTokenizer:
        """Train the published set-up's kind of vocabulary; see `train_tokenizer`.

        Raises:
          TokenizerError: the texts are too short for that many entries, or `vocabulary` is too
            small for the bytes.
        """
        library = _library("config.data.tokenizer='byte_level'")
        least = SPECIALS + 256
        TokenizerError.require(
            vocabulary > least,
            f"config.data.vocab_size={vocabulary} has no room beside {SPECIALS} reserved ids"
            f" and 256 bytes; use more than {least}",
        )
        # The Rust trainer may use threads; the merges do not depend on their number.
        tokenizer = library.Tokenizer(library.models.BPE())
        cut = library.pre_tokenizers.Split(library.Regex(_LLAMA_3), "isolated")
        spell = library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = library.pre_tokenizers.Sequence([cut, spell])
        tokenizer.decoder = library.decoders.ByteLevel()
        specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"]
        specials += [f"<|{FREE}_{i}|>" for i in range(SPECIALS - len(specials))]
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=specials,
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(training_part(texts), trainer)
        size = tokenizer.get_vocab_size()
        TokenizerError.require(
            size == vocabulary,
            f"config.data.vocab_size={vocabulary}: the training text does not give that many"
            f" entries; the largest that works is {size};"
            " give more text or a smaller vocabulary",
        )
        return cls(tokenizer.to_str(pretty=True).encode())

    def encode_batch(
        self, texts: Sequence[str], threads: int = 1, start: bool = True
    ) -> list[np.ndarray]:
        """Return `encode` of each text; the library chooses its threads (RAYON_NUM_THREADS)."""
        require_text(texts)
        if threads == 1:
            found = (self._tokenizer.encode(text, add_special_tokens=False) for text in texts)
        else:
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
            found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in found]

    def _ends(self, text: str) -> list[int]:
        at = list(itertools.accumulate((len(x.encode()) for x in text), initial=0))
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        return [at[end] for _, end in encoding.offsets]

    def _spelling(self, i: int) -> bytes:
        piece = self._tokenizer.id_to_token(i) or ""  # Ids may have gaps.
        # The bytes of a piece that is not spelled in them, or of an added token, are its own.
        if i in self._added or not _alphabet().keys() >= set(piece):
            return self._added.get(i, piece).encode()
        return bytes(_alphabet()[character] for character in piece)


def _library(origin: str) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise TokenizerError(
            f"{origin} needs the package tokenizers: pip install tokenizers"
        ) from error
    return tokenizers


def _steps(described: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """Return the steps of a part of a `tokenizer.json`: one, or those of a sequence."""
    step = described.get(key) or {"type": ""}
    inner = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}.get(key, "processors")
    return [step, *step.get(inner, ())]


def _template(described: Mapping[str, Any]) -> Borders:
    """Return the special tokens that a template puts around a text."""
    steps = _steps(described, "post_processor")
    parts = next((step["single"] for step in steps if step["type"] == "TemplateProcessing"), ())
    tokens = [part.get("SpecialToken", {}).get("id") for part in parts]
    at = tokens.index(None) if None in tokens else 0
    return {"<s>": tokens[:at], "</s>": tokens[at + 1 :]}


@functools.cache
def _alphabet() -> Mapping[str, int]:
    """Return the byte that each of 256 characters stands for.

    The character is the byte itself if that is printable Latin-1, or else the next unused one from
    256 on.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in plain)
    return {chr(byte): byte for byte in plain} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }
