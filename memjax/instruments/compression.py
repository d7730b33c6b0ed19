"""What a text costs once its memory is counted: the memory's bits beside the nats that are left of the text.

A memory of n_p numbers at b_p bits for every n tokens costs n_p * b_p * ln 2 / n nats a token, whatever the tokenizer (Badger 2026,
normalised loss). 64 numbers for 1024 tokens are 0.173 nats a token at 4 bits and 0.347 at 8.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from memjax.instruments.errors import InstrumentError
from memjax.instruments.uncertainty import Estimate, ratio

WIDTHS = (4, 8, 16, 32)
"""Bits of a number."""


class CompressionError(InstrumentError):
    """A size is none; the message names it."""


def bits_per_byte(nats: float, tokens: float, text_bytes: float) -> float:
    """Bits a byte of text.

    Args:
      nats: mean of a token.
      tokens: of the text.
      text_bytes: UTF-8 bytes that these tokens stand for.

    Raises:
      CompressionError: the text has no bytes.
    """
    _require_positive(text_bytes=text_bytes)
    return nats / math.log(2) * tokens / text_bytes


def embedding_cost(numbers: float, bits: float, tokens: float, bytes_per_token: float) -> float:
    """Bits a byte of text that its memory takes.

    Args:
      numbers: that are stored for `tokens` tokens.
      bits: of each.
      tokens: that share them.
      bytes_per_token: UTF-8 bytes a token stands for, on average.

    Raises:
      CompressionError: there are no tokens, or they have no bytes.
    """
    _require_positive(tokens=tokens, bytes_per_token=bytes_per_token)
    return numbers * bits / (tokens * bytes_per_token)


def memory_nats(numbers: float, bits: float, tokens: float) -> float:
    """Nats a token that a memory takes; arguments as in `embedding_cost`."""
    _require_positive(tokens=tokens)
    return numbers * bits * math.log(2) / tokens


def normalised_loss(nats: float, numbers: float, bits: float, tokens: float) -> float:
    """Nats a token that are left of a text given its memory, and those of the memory: what the text costs in all."""
    return nats + memory_nats(numbers, bits, tokens)


@dataclasses.dataclass(frozen=True)
class Cost:
    """A text and its memory, the memory's numbers stored at one width."""

    bits: int
    """Of a number."""
    memory_nats: float
    """Of the memory, a token. Exact: not measured."""
    normalised: Estimate
    """Nats a token, of text and memory together."""
    memory_bits_per_byte: Estimate
    """Of the memory."""
    bits_per_byte: Estimate
    """Of text and memory together."""


def costs(
    nats: np.ndarray, tokens: np.ndarray, text_bytes: np.ndarray, numbers: int, widths: Sequence[int] = WIDTHS
) -> tuple[Cost, ...]:
    """What texts cost at several widths. That the model reads its memory as well at each width is assumed; see quantisation.

    Args:
      nats: [N], of whole texts given their memories.
      tokens: [N], that were scored.
      text_bytes: [N], UTF-8 bytes these tokens stand for.
      numbers: in the memory of a text.
      widths: bits a number, one for each row.

    Raises:
      CompressionError: texts differ in number, or have no tokens or bytes.
    """
    nats, tokens, text_bytes = (np.asarray(x, np.float64) for x in (nats, tokens, text_bytes))
    if not nats.shape == tokens.shape == text_bytes.shape or nats.ndim != 1:
        raise CompressionError(
            f"nats {nats.shape}, tokens {tokens.shape} and bytes {text_bytes.shape} must be one number a text"
        )
    _require_positive(tokens=tokens.sum(), text_bytes=text_bytes.sum(), texts=len(nats))
    rows = []
    for bits in widths:
        memory_bits = np.full(nats.shape, float(numbers * bits))
        whole = nats + memory_bits * math.log(2)
        rows.append(
            Cost(
                bits=bits,
                memory_nats=memory_nats(numbers * len(nats), bits, tokens.sum()),
                normalised=ratio(whole, tokens),
                memory_bits_per_byte=ratio(memory_bits, text_bytes),
                bits_per_byte=ratio(whole / math.log(2), text_bytes),
            )
        )
    return tuple(rows)


def _require_positive(**sizes: float) -> None:
    for name, size in sizes.items():
        if not size > 0:
            raise CompressionError(f"{name}={size}: there must be some, as bits are counted for each")
