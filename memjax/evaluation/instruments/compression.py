"""Cost of a text in bits of its memory plus the nats of the text given that memory.

A memory of n_p numbers at b_p bits per n tokens costs n_p * b_p * ln 2 / n nats per token, for any
tokenizer (Badger 2026, normalised loss). 64 numbers per 1024 tokens are 0.173 nats per token at 4
bits and 0.347 at 8.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from memjax.errors import MemjaxError
from memjax.objectives.uncertainty import Estimate, ratio

WIDTHS = (4, 8, 16, 32)
"""Bits per number."""


class CompressionError(MemjaxError):
    """A size is not greater than 0; the message names it."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of a text and its memory, with the memory's numbers stored at one width."""

    bits: int
    """Bits per number."""
    memory_nats: float
    """Nats per token of the memory, computed exactly, not measured."""
    normalised: Estimate
    """Nats per token of text and memory together."""
    memory_bits_per_byte: Estimate
    """Bits per byte of text for the memory."""
    bits_per_byte: Estimate
    """Bits per byte of text for text and memory together."""


def costs(
    nats: np.ndarray,
    tokens: np.ndarray,
    text_bytes: np.ndarray,
    numbers: int,
    widths: Sequence[int] = WIDTHS,
) -> tuple[Cost, ...]:
    """Return the cost of texts at several widths.

    The nats are assumed to be equal at each width; see quantisation.

    Args:
      nats: [N], nats of whole texts given their memories.
      tokens: [N], scored tokens.
      text_bytes: [N], UTF-8 bytes of these tokens.
      numbers: numbers per memory of a text.
      widths: bits per number, one for each result.

    Raises:
      CompressionError: texts differ in number, or have no tokens or bytes.
    """
    nats, tokens, text_bytes = (np.asarray(x, np.float64) for x in (nats, tokens, text_bytes))
    if not nats.shape == tokens.shape == text_bytes.shape or nats.ndim != 1:
        raise CompressionError(
            f"nats {nats.shape}, tokens {tokens.shape}, text_bytes {text_bytes.shape}: expected one"
            " number per text in each"
        )
    for name, size in (("tokens", tokens.sum()), ("text_bytes", text_bytes.sum())):
        CompressionError.require(
            size > 0, f"{name}={size}: expected more than 0, as the bits are divided by it"
        )

    def cost(bits: int) -> Cost:
        memory_bits = np.full(nats.shape, float(numbers * bits))
        whole = nats + memory_bits * math.log(2)
        return Cost(
            bits=bits,
            memory_nats=numbers * len(nats) * bits * math.log(2) / tokens.sum(),
            normalised=ratio(whole, tokens),
            memory_bits_per_byte=ratio(memory_bits, text_bytes),
            bits_per_byte=ratio(whole / math.log(2), text_bytes),
        )

    return tuple(map(cost, widths))
