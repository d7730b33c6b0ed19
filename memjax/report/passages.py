"""Held-out passages beside what a model regenerates from their memories, token by token, wrong ones marked."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Token:
    """One piece of text as it is shown; `expected` is the right piece when this one is wrong, else None."""

    text: str
    expected: str | None = None
    lead: str = ""
    """Spaces before a wrong token's text, which carry no mark."""


@dataclasses.dataclass(frozen=True)
class Side:
    """One text of a passage."""

    tokens: list[Token]

    @property
    def right(self) -> int:
        """How many tokens are right."""
        return sum(token.expected is None for token in self.tokens)


@dataclasses.dataclass(frozen=True)
class Passage:
    """A held-out text, what the memory model makes of its memories and what the control makes of its own; None: not run."""

    source: Side
    regenerated: Side | None
    control: Side | None


def visible(piece: Any) -> str:
    """A piece with its line breaks and tabs made visible; a break stays a place where the browser may wrap."""
    return str(piece).replace("\r\n", "\n").replace("\n", "↵\u200b").replace("\t", "⇥")


def read_passages(records: Any) -> list[Passage]:
    """The passages of results.json; records that hold no source are left out."""
    passages = []
    for record in records if isinstance(records, list) else []:
        source = _pieces(record.get("source")) if isinstance(record, Mapping) else None
        if source:
            regenerated = mark(source, _pieces(record.get("regenerated")), record.get("correct"))
            control = mark(source, _pieces(record.get("control")), record.get("control_correct"))
            passages.append(Passage(Side([Token(visible(piece)) for piece in source]), regenerated, control))
    return passages


def mark(source: Sequence[str], made: Sequence[str] | None, correct: Any) -> Side | None:
    """Marks the tokens of `made` that are wrong: where `correct` says so (it knows the ids), else where the pieces differ."""
    if not made:
        return None
    flags: Sequence[Any] = (
        correct
        if isinstance(correct, list) and len(correct) == len(made) == len(source)
        else [one == other for one, other in itertools.zip_longest(source, made)]
    )
    tokens = []
    for wanted, piece, right in itertools.zip_longest(source, made, flags):
        if right:
            tokens.append(Token(visible(piece)))
        else:
            # A token that is missing, or one that prints as nothing, must still be seen as wrong.
            shown = "∅" if piece is None or piece == "" else visible(piece)
            bare = shown.lstrip(" ") or shown
            tokens.append(Token(bare, "nothing" if wanted is None else f"“{visible(wanted)}”", shown[: len(shown) - len(bare)]))
    return Side(tokens)


def _pieces(value: Any) -> list[str] | None:
    return [str(piece) for piece in value] if isinstance(value, list) else None
