"""The one reader of JSON: of bounded size and depth, and of the shape that is expected."""

import json
import math
import os
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from memjax.files.atomic import regular
from memjax.files.paths import is_remote, read_object

JSON_LIMIT, JSON_DEPTH = 2**26, 64
"""Bytes of a JSON file and levels of its value, at most."""
LARGEST = 2**53
"""The largest whole number that is read: sums of a few stay below 2**63, and floats hold it."""
Error = type[ValueError]


def read_json(path: str | os.PathLike, error: Error, shape: Any = dict, remedy: str = "") -> Any:
    """Read the JSON in a file: all JSON of the package is read by this or by `parse_json`.

    Args:
      path: a regular file of at most JSON_LIMIT bytes, on disk or in a bucket.
      error: the class of error to raise.
      shape: what is expected, as in `require_shape`.
      remedy: a sentence for the message of an error: what to do.

    Raises:
      error: the file is absent, of another kind, too large, or is no JSON of that shape.
    """
    try:
        if is_remote(path):
            text = read_object(path)
        else:
            file = regular(path)
            size = file.stat().st_size
            if size > JSON_LIMIT:
                raise error(f"{path}: {size} bytes, expected at most {JSON_LIMIT}{ending(remedy)}")
            text = file.read_bytes()
    except FileNotFoundError as caught:
        raise error(f"{path}: no such file, expected JSON{ending(remedy)}") from caught
    except OSError as caught:
        raise error(f"{path}: cannot be read ({caught.strerror}){ending(remedy)}") from caught
    return parse_json(text, path, error, shape, remedy)


def parse_json(
    text: str | bytes, where: str | os.PathLike, error: Error, shape: Any = dict, remedy: str = ""
) -> Any:
    """Return the value of a JSON text; arguments as in `read_json`, `where` begins a message.

    Whole numbers of 20 digits or more become floats, so that no operation on them fails.
    """
    try:
        if len(text) > JSON_LIMIT:
            raise ValueError(f"more than {JSON_LIMIT} bytes")
        text = text.decode() if isinstance(text, bytes) else text
        value = json.loads(
            text,
            parse_int=lambda digits: int(digits) if len(digits) < 20 else float(digits),
            object_pairs_hook=_unique,
        )
        level = [value]
        for _ in range(JSON_DEPTH):
            parts = [part for part in level if isinstance(part, (dict, list))]
            level = [x for part in parts for x in (part.values() if type(part) is dict else part)]
        if level:
            raise RecursionError
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # Half surrogates have no UTF-8.
    except (RecursionError, ValueError) as caught:
        deep = f"nested more than {JSON_DEPTH} levels deep"
        why = deep if isinstance(caught, RecursionError) else caught
        raise error(f"{where}: no JSON ({why}){ending(remedy)}") from caught
    require_shape(value, shape, where, error, remedy)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


_WORDS: Mapping[Any, str] = {
    int: f"a whole number from 0 to {LARGEST}",
    float: "a finite number",
    str: "text",
    bool: "true or false",
    dict: "an object",
    list: "a list",
}


def require_shape(
    value: Any, shape: Any, where: object, error: Error, remedy: str = "", key: str = ""
) -> None:
    """Raise an error that names file and key unless a JSON value has a shape.

    Args:
      value: the value.
      shape: `int`, `float`, `str`, `bool`, `dict`, `list`, or `object` for any; `[SHAPE]`; a tuple
        of the values that there can be; `{str: SHAPE}` for an object of any keys;
        `{"key": SHAPE, "key?": SHAPE}` for one that has these, and perhaps others.
      where: the file, which begins the message.
      error: the class of error to raise.
      remedy: a sentence for the end of the message.
      key: the key of the value.
    """
    kind = shape if isinstance(shape, type) else type(shape)
    at = f"{where}: {key}".removesuffix(": ")
    if kind is tuple:
        fits = type(value) is type(shape[0]) and value in shape
    elif kind is int:
        fits = type(value) is int and 0 <= value <= LARGEST
    elif kind is float:
        fits = type(value) in (int, float) and math.isfinite(value)
    else:
        fits = isinstance(value, kind)
    if not fits:
        words = " or ".join(map(repr, shape)) if kind is tuple else _WORDS[kind]
        raise error(f"{at}: {reprlib.repr(value)}, expected {words}{ending(remedy)}")
    members: Iterable[tuple[Any, Any]] = ()
    if isinstance(shape, list):
        members = ((place, shape[0]) for place in range(len(value)))
    elif isinstance(shape, dict):
        keys = dict.fromkeys(value, shape[str]) if str in shape else shape
        members = ((name.removesuffix("?"), own) for name, own in keys.items())
    for name, own in members:
        if kind is list or name in value:
            inner = f"{key}.{name}".removeprefix(".")
            require_shape(value[name], own, where, error, remedy, inner)
        elif name in shape:
            raise error(f"{at}: no {name}, expected it there{ending(remedy)}")


def ending(remedy: str) -> str:
    """Return a remedy as the last sentence of a message."""
    return f". {remedy}" if remedy else ""
