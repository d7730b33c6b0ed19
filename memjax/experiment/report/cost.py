"""Numbers that a memory costs per token of text, by arithmetic."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from memjax.evaluation import numbers
from memjax.evaluation.instruments.tables import Table

DATA = (
    "chunk_length",
    "memory_vectors",
    "memory_width",
    "decoder_layers",
    "decoder_kv_heads",
    "decoder_head_dim",
)
"""Keys of `data` in results.json, the arguments of `memory_costs`."""


class Cost(NamedTuple):
    """Numbers that are kept of each token of a text."""

    chunk_length: int
    vectors: int
    memory: float
    """Numbers of the memory per token: K * E / L."""
    cache: int
    """Numbers of a KV cache per token at full context: 2 * layers * heads * width of a head."""

    @property
    def ratio(self) -> float:
        """Numbers of the KV cache per number of the memory."""
        return self.cache / self.memory


def memory_costs(
    chunk_length: int, vectors: int, width: int, layers: int, kv_heads: int, head_dim: int
) -> list[Cost]:
    """Return what memories cost, for chunk lengths and vectors around those of a run.

    These are half, once and twice each, in whole numbers from 1; the vectors of one chunk length
    come together.

    Args:
      chunk_length: L, tokens of a chunk.
      vectors: K, vectors of a chunk's memory.
      width: E, numbers of a vector.
      layers: of the decoder.
      kv_heads: its heads that have keys and values.
      head_dim: numbers of a key, and of a value, per head.
    """
    cache = 2 * layers * kv_heads * head_dim
    lengths, counts = (sorted({max(1, x // 2), x, 2 * x}) for x in (chunk_length, vectors))
    return [Cost(L, K, K * width / L, cache) for L in lengths for K in counts]


def cost_table(data: Mapping[str, Any]) -> Table | None:
    """Return a table of `memory_costs`, a row per chunk length; None where a number is missing.

    Args:
      data: the section `data` of results.json.
    """
    found = [numbers.number(data.get(key)) for key in DATA]
    whole = [int(x) for x in found if x is not None and x >= 1]
    if len(whole) < len(DATA):
        return None
    costs = memory_costs(*whole)
    counts = list(dict.fromkeys(cost.vectors for cost in costs))
    rows = [
        (
            f"{costs[start].chunk_length:,}",
            *(f"{one.memory:,.4g} ({one.ratio:,.4g} ×)" for one in costs[start:][: len(counts)]),
        )
        for start in range(0, len(costs), len(counts))
    ]
    length, vectors, width, layers, heads, head_dim = whole
    return Table(
        "Cost of a memory, numbers per token of text",
        ("tokens per chunk", *(f"{n:,} vector{'s' * (n > 1)} per chunk" for n in counts)),
        rows,
        f"In brackets: how many times as many numbers a KV cache of full context has per token,"
        f" {costs[0].cache:,} (2 × {layers} layers × {heads} heads × {head_dim}). This run has"
        f" {vectors:,} vector{'s' * (vectors > 1)} of {width:,} numbers for {length:,} tokens."
        " While the decoder reads a memory, each vector has keys and values like one token.",
    )
