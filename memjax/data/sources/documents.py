"""Stored values become documents; damaged ones raise."""

from __future__ import annotations

import json
from typing import Any

from memjax.data.sources.base import DocumentError
from memjax.errors import few


def ranges(count: int, total_bytes: int, size: int) -> list[tuple[int, int]]:
    """Split `count` items of `total_bytes` in all into (start, stop) of about `size` bytes each."""
    step = max(1, count * size // max(total_bytes, 1))
    return [(start, min(start + step, count)) for start in range(0, count, step)]


def text_of_bytes(raw: bytes, what: str, more: str, offset: int = 0) -> str:
    """Return UTF-8 as text.

    Args:
      raw: the bytes.
      what: the bytes in a message.
      more: the rest of the message.
      offset: the number of the first byte.

    Raises:
      DocumentError: the bytes are not UTF-8; the message names the first that is not.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise DocumentError(
            f"{what} not UTF-8 at byte {offset + error.start}{more}", "not UTF-8"
        ) from error


def text_of(value: Any, where: str, field: str) -> str:
    """Return a stored value as text: strings as they are, bytes as UTF-8.

    Raises:
      DocumentError: the value is neither, is not UTF-8 or holds half of a surrogate pair.
    """
    if isinstance(value, bytes):
        return text_of_bytes(value, f"{where}: field {field!r} is", " of the field")
    if not isinstance(value, str):
        raise DocumentError(
            f"{where}: field {field!r} holds {_kind(value)}, expected text. Set"
            " config.data.text_field to a field with text",
            "not text",
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DocumentError(
            f"{where}: field {field!r} holds half of a surrogate pair (\\ud800 to \\udfff),"
            " expected whole characters",
            "half of a surrogate pair",
        ) from error
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def text_of_json(line: str, where: str, field: str, each: str = "line") -> str:
    """Return the text in `field` of a JSON object.

    Raises:
      DocumentError: `line` is not JSON, not an object, or has no text in `field`.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # Too many digits or brackets, for example.
        raise DocumentError(
            f'{where}: not JSON ({error}), expected one object per {each}, such as {{"{field}":'
            f' "..."}}',
            "not JSON",
        ) from error
    if not isinstance(record, dict):
        raise DocumentError(
            f"{where}: holds {_kind(record)}, expected one object per {each}, such as"
            f' {{"{field}": "..."}}',
            "not a JSON object",
        )
    if field not in record:
        raise DocumentError(
            f"{where}: no field {field!r}, only {few(record)}. Set"
            " config.data.text_field to one of them",
            "no such field",
        )
    return text_of(record[field], where, field)
