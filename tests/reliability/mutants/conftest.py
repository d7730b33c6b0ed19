"""Mutants of files: a value of another type, flipped bits, bytes cut out, put in or lost."""

import contextlib
import functools
import json
import random
from collections.abc import Callable
from typing import Any

import pytest

ODD: list[Any] = [
    *(None, True, [], {}, "", [[1]], {"a": {}}, [None], 0, -1, 0.5, 2**31, 2**63, 10**30),
    *(float("nan"), float("inf"), "\x1b[31m", "\u202e", "../up", "/dev/zero", "x" * 100_000),
    functools.reduce(lambda inner, _: [inner], range(500), []),
]
"""Values of other types and sizes."""
TOKENS = [b"9" * 5000, b"1e999", b"NaN", b"\xff", b"\x00", b"[" * 5000, b'"\\ud800"', b"{}", b","]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values in JSON."""
    items = dict(enumerate(value)) if isinstance(value, list) else value
    items = items.items() if isinstance(items, dict) else ()
    return [path, *(place for key, part in items for place in places(part, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], draw: random.Random) -> Any:
    """JSON with another value in one place, or none; of JSON in a text, one part is replaced."""
    if not path:
        if isinstance(value, str) and value[:1] == "{" and draw.random() < 0.8:
            return mutant(value.encode(), draw).decode(errors="replace")
        return draw.choice([..., *ODD])
    key, *rest = path
    copy = value.copy()
    copy[key] = replaced(value[key], tuple(rest), draw)
    if copy[key] is ...:
        del copy[key]
    return copy


def json_in(contents: bytes, draw: random.Random) -> tuple[int, int]:
    """Start and end of JSON: all of the contents, the header of safetensors, or a line."""
    if contents[8:9] == b"{" and (size := int.from_bytes(contents[:8], "little")) < len(contents):
        return 8, 8 + size
    lines = contents.splitlines(keepends=True)
    if all(line[:1] == b"{" for line in lines) and lines:
        number = draw.randrange(len(lines))
        start = sum(map(len, lines[:number]))
        return start, start + len(lines[number])
    return 0, len(contents)


def mutant(contents: bytes, draw: random.Random) -> bytes:
    """The contents with one change: of a value, of a bit, or of a few bytes."""
    if draw.random() < 0.5:
        start, end = json_in(contents, draw)
        with contextlib.suppress(ValueError):
            value = json.loads(contents[start:end])
            if len(paths := places(value)) > 1:
                value = replaced(value, draw.choice(paths[1:]), draw)
                new = json.dumps(value).encode()
                head = len(new).to_bytes(8, "little") if start == 8 else contents[:start]
                return head + new + contents[end:]
    if not contents:
        return draw.choice(TOKENS)
    start, length = draw.randrange(len(contents)), draw.choice((0, 1, 1, 4, 64))
    kind = draw.randrange(5)
    if kind == 4:  # Of the same size, as a block that a disk lost.
        size, other = draw.choice((4, 64, 4096)), draw.randrange(len(contents))
        block = draw.choice((bytes(size), contents[other : other + size]))
        return (contents[:start] + block + contents[start + len(block) :])[: len(contents)]
    if kind == 0:
        flipped = contents[start] ^ 1 << draw.randrange(8)
        return contents[:start] + bytes([flipped]) + contents[start + 1 :]
    if kind == 1:
        return contents[: draw.choice((0, start, start, start))]
    new = draw.choice(TOKENS) if kind == 2 else contents[start : start + 64]
    return contents[:start] + new + contents[start + length :]


@pytest.fixture(name="mutant", scope="session")
def mutant_fixture() -> Callable[[bytes, random.Random], bytes]:
    """Contents with one change, drawn by a generator."""
    return mutant
