"""Byte-level BPE in a Hugging Face `tokenizer.json`, as of GPT-2, Llama 3 and Qwen (extra `hf`: the `tokenizers` package).

Every piece is spelled in 256 printable characters that stand for the bytes (Radford et al. 2019), so what an id stands for is known without
decoding. `trained` makes the published set-up's vocabulary: ids 0 to 255 reserved, 0 the begin and 1 the end of a document, then the bytes
and what is merged of them (Badger 2026, data).
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from memjax.data.tokenizer import RESERVED, Tokenizer, TokenizerError, appended

KNOWN: Mapping[str, tuple[str, ...]] = {
    "<pad>": ("<|finetune_right_pad_id|>", "<pad>", "[PAD]", "<|pad|>"),
    "<unk>": ("<unk>", "[UNK]"),
    "<s>": ("<|begin_of_text|>", "<s>", "<bos>", "[BOS]", "<|startoftext|>"),
    "</s>": ("<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>", "[EOS]"),
    "<blank>": ("<blank>",),
    "<delimiter>": ("<delimiter>",),
}
"""What vocabularies call the reserved ids."""
FREE = "reserved_special_token"
"""Part of the name of special tokens that a vocabulary gives away."""
SPECIALS = 256
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The expression by which Llama 3's vocabulary cuts text into words."""
_TRAINING_CHARACTERS = 100_000_000


class ByteLevelTokenizer(Tokenizer):
    """A `tokenizer.json` of byte-level BPE; its special tokens are never made from text, not even from their own spelling."""

    file_name = "tokenizer.json"

    def __init__(self, model: bytes, origin: str = "the tokenizer"):
        """Takes the contents of a `tokenizer.json`; `origin` is what errors call it.

        Raises:
          TokenizerError: it is damaged, of another kind, or the `tokenizers` package is missing.
        """
        super().__init__(model)
        library = _library(origin)
        try:
            self._tokenizer: Any = library.Tokenizer.from_buffer(model)
            described = json.loads(model)
            if described["model"]["type"] != "BPE" or not _byte_level(described):
                raise TokenizerError(
                    f"{origin}: a {described['model']['type']} vocabulary that is not byte-level; give a byte-level BPE (GPT-2, Llama 3,"
                    " Qwen), or a sentencepiece model with byte_fallback"
                )
        except TokenizerError:
            raise
        except Exception as error:  # The library raises plain Exception.
            raise TokenizerError(f"{origin} is no tokenizer.json, or a damaged one ({error}); download it again") from error
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        added = {int(token["id"]): token for token in described.get("added_tokens") or ()}
        self._added = {i: token["content"].encode() for i, token in added.items() if not token["special"]}
        special = {token["content"]: i for i, token in added.items() if token["special"]}
        found = {name: next((special[x] for x in KNOWN[name] if x in special), None) for name in RESERVED}
        free = sorted(i for content, i in special.items() if FREE in content and i not in found.values())
        self._names = self._reserve(found, free, self._size) | {i: content for content, i in special.items()}
        for byte, character in _alphabet().items():
            if self._tokenizer.token_to_id(character) is None:
                raise TokenizerError(
                    f"{origin}: has no piece for byte {byte:#04x}, so not every text has ids; give another vocabulary"
                )
        # Special tokens stand at one end or both.
        texts = [i for i in range(self._size) if i not in self._names]
        self.content = (texts[0], next((i for i in range(texts[0], self._size) if i in self._names), self._size))
        self.exact = described.get("normalizer") is None

    @classmethod
    def trained(cls, texts: Iterable[str], vocabulary: int) -> ByteLevelTokenizer:
        """The published set-up's kind of vocabulary; see `Tokenizer.train`.

        Raises:
          TokenizerError: the texts hold too little for that many entries, or `vocabulary` has no room for the bytes.
        """
        library = _library("config.data.tokenizer='byte_level'")
        least = SPECIALS + 256
        if vocabulary <= least:
            raise TokenizerError(
                f"config.data.vocabulary={vocabulary} has no room beside {SPECIALS} reserved ids and 256 bytes; use more than {least}"
            )
        # The Rust trainer may use threads, and gives the same merges with any number of them.
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
        tokenizer.train_from_iterator(_first(texts, _TRAINING_CHARACTERS), trainer)
        size = tokenizer.get_vocab_size()
        if size != vocabulary:
            raise TokenizerError(
                f"config.data.vocabulary={vocabulary}: the training text does not give that many entries; the largest that works is {size};"
                " give more text or a smaller vocabulary"
            )
        return cls(tokenizer.to_str(pretty=True).encode())

    def encode_batch(self, texts: Sequence[str], threads: int = 1) -> list[np.ndarray]:
        """`encode` of each text; threads are the library's own (RAYON_NUM_THREADS)."""
        if threads == 1:
            found = (self._tokenizer.encode(text, add_special_tokens=False) for text in texts)
        else:
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
            found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in found]

    @property
    def _reserved(self) -> Mapping[int, str]:
        return self._names

    @functools.cached_property
    def _bytes(self) -> list[bytes]:
        of_character = {character: byte for byte, character in _alphabet().items()}
        words = []
        for i in range(self._size + appended(self._names, self._size)):
            if i in self._names:
                words.append(b"")
            elif i in self._added:
                words.append(self._added[i])
            else:
                words.append(bytes(of_character[character] for character in self._tokenizer.id_to_token(i) or ""))
        return words


def _library(origin: str) -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise TokenizerError(f"{origin} needs the package tokenizers: pip install 'memjax[hf]'") from error
    return tokenizers


def _byte_level(described: Mapping[str, Any]) -> bool:
    """Whether a ByteLevel step is among those before the model."""
    step = described.get("pre_tokenizer") or {}
    return any(part.get("type") == "ByteLevel" for part in [step, *step.get("pretokenizers", ())])


@functools.cache
def _alphabet() -> Mapping[int, str]:
    """The character that stands for each byte: itself where it is printable Latin-1, else the next unused one from 256 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in plain)
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + place) for place, byte in enumerate(others)}


def _first(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        if characters <= 0:
            return
        characters -= len(text)
        yield text
