"""Spans, sizes and names of a store in few bytes.

A table of integers is turned into steps: what differs from the place where the row before leads.
Columns are stored one after another, each as one byte w (0, 1, 2, 4 or 8) and signed little-endian
integers of w bytes, none if all are 0; all of it is compressed by zlib.

Shapes: N chunk, D document, R row, C column.
"""

import zlib

import numpy as np
from jaxtyping import Int

from memjax.checkpoints.store_records import INTEGER, StoreError

_WIDTHS = (1, 2, 4, 8)
_LEVEL = 9


def span_steps(spans: Int[np.ndarray, "N 5"], length: int) -> Int[np.ndarray, "N 5"]:
    """Return documents after the one before, tokens between chunks, tokens above `length`, bytes
    between chunks, and bytes of text.

    Args:
      spans: document, first token, number of tokens, first byte, byte after the last.
      length: tokens of a full chunk.
    """
    document, token, tokens, first, last = spans.T
    return np.stack(
        [
            _after(document, document),
            _after(token, token + tokens),
            tokens - length,
            _after(first, last),
            last - first,
        ],
        axis=1,
    )


def spans_of(steps: Int[np.ndarray, "N 5"], length: int) -> Int[np.ndarray, "N 5"]:
    """Return the spans of `span_steps`; of other steps, sums that may be beyond any bound."""
    document, token, tokens, first, text = steps.T
    tokens = tokens + length
    first_token = np.cumsum(token + tokens) - tokens
    last = np.cumsum(first + text)
    return np.stack([np.cumsum(document), first_token, tokens, last - text, last], axis=1)


def size_steps(sizes: Int[np.ndarray, "D 3"]) -> Int[np.ndarray, "D 3"]:
    """Return tokens, bytes, and bytes between documents.

    Args:
      sizes: tokens, bytes, first byte in the source.
    """
    tokens, text, start = sizes.T
    return np.stack([tokens, text, _after(start, start + text)], axis=1)


def sizes_of_steps(steps: Int[np.ndarray, "D 3"]) -> Int[np.ndarray, "D 3"]:
    """Return the sizes of `size_steps`."""
    tokens, text, between = steps.T
    return np.stack([tokens, text, np.cumsum(between + text) - text], axis=1)


def packed_table(table: Int[np.ndarray, "R C"]) -> Int[np.ndarray, " bytes"]:
    """Return a table by columns, compressed."""
    parts: list[bytes] = []
    for column in table.T:
        kinds = [np.dtype(f"<i{width}") for width in _WIDTHS]
        kind = next(kind for kind in kinds if (column.astype(kind) == column).all())
        parts += (
            [bytes([kind.itemsize]), column.astype(kind).tobytes()] if column.any() else [b"\0"]
        )
    return packed_bytes(b"".join(parts))


def unpacked_table(
    stored: Int[np.ndarray, " bytes"], rows: int, columns: int, what: str
) -> Int[np.ndarray, "R C"]:
    """Return the table of `packed_table`.

    Args:
      stored: its bytes, which may be any.
      rows: R.
      columns: C.
      what: its name, for messages.

    Raises:
      StoreError: they are not a table of this shape.
    """
    data = unpacked_bytes(stored, columns * (1 + _WIDTHS[-1] * rows), what)
    table, place = np.zeros((rows, columns), INTEGER), 0
    for column in range(columns):
        width = data[place] if place < len(data) else -1
        end = place + 1 + width * rows
        StoreError.require(
            width in (0, *_WIDTHS) and end <= len(data), f"{what} that are not {rows} rows"
        )
        if width:
            table[:, column] = np.frombuffer(data[place + 1 : end], f"<i{width}")
        place = end
    StoreError.require(place == len(data), f"{what} that are not {rows} rows")
    return table


def packed_bytes(data: bytes) -> Int[np.ndarray, " bytes"]:
    """Return bytes compressed by zlib."""
    return np.frombuffer(zlib.compress(data, _LEVEL), np.uint8)


def unpacked_bytes(stored: Int[np.ndarray, " bytes"], limit: int, what: str) -> bytes:
    """Return the bytes of `packed_bytes`.

    Args:
      stored: bytes, which may be any.
      limit: the largest number of bytes that they hold.
      what: their name, for messages.

    Raises:
      StoreError: they are damaged, or hold more.
    """
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(stored.tobytes(), limit + 1)
    except zlib.error as error:
        raise StoreError(f"{what} that are damaged ({error})") from error
    StoreError.require(
        len(data) <= limit and stream.eof and not stream.unused_data,
        f"{what} that are cut off, or of more than {limit} bytes",
    )
    return data


def _after(values: Int[np.ndarray, " R"], ends: Int[np.ndarray, " R"]) -> Int[np.ndarray, " R"]:
    """Return values less the end of the row before, which is 0 for the first."""
    return values - np.concatenate([[0], ends[:-1]])[: len(values)]
