"""Held-out passages beside their reconstruction from memories, with wrong tokens marked."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from memjax.evaluation.numbers import number


class Token(NamedTuple):
    """One piece of text; `expected` is the right piece if this one is wrong, else None."""

    text: str
    expected: str | None = None
    lead: str = ""
    """Spaces before a wrong token's text, which are not marked."""


class Passage(NamedTuple):
    """A held-out text, and its reconstruction by the memory model and by the control.

    None means that the model was not run.
    """

    source: list[Token]
    regenerated: list[Token] | None
    control: list[Token] | None
    memories: int | None = None
    """The memories among which it was recalled, where that was by its place."""
    back: int | None = None
    """Chunks from the end of those memories back to it."""


_CONTROLS = {code: chr(0x2400 + code) for code in range(32)} | {
    ord("\n"): "↵\u200b",
    ord("\t"): "⇥",
    0x7F: "\u2421",
}
"""Control characters, which HTML drops or forbids, mapped to characters that are visible."""


def visible(piece: Any) -> str:
    """Return a piece with visible line breaks, tabs and other control characters.

    The browser may wrap at a line break.
    """
    return str(piece).replace("\r\n", "\n").translate(_CONTROLS)


def read_passages(records: Any) -> list[Passage]:
    """Return the passages of results.json; records without a source are skipped."""
    passages = []
    for record in records if isinstance(records, list) else []:
        source = _pieces(record.get("source")) if isinstance(record, Mapping) else None
        if source:
            regenerated = mark(source, _pieces(record.get("regenerated")), record.get("correct"))
            control = mark(source, _pieces(record.get("control")), record.get("control_correct"))
            memories, place = (number(record.get(key)) for key in ("memories", "place"))
            where = (
                () if memories is None or place is None else (int(memories), int(memories - place))
            )
            shown = [Token(visible(piece)) for piece in source]
            passages.append(Passage(shown, regenerated, control, *where))
    return passages


def mark(source: Sequence[str], made: Sequence[str] | None, correct: Any) -> list[Token] | None:
    """Mark the wrong tokens of `made`.

    `correct` compares ids and has priority; without it, pieces are compared.
    """
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
            # A missing or empty token must be visible as wrong too.
            shown = "∅" if piece is None or piece == "" else visible(piece)
            bare = shown.lstrip(" ") or shown
            tokens.append(
                Token(
                    bare,
                    "nothing" if wanted is None else f"“{visible(wanted)}”",
                    shown[: len(shown) - len(bare)],
                )
            )
    return tokens


def _pieces(value: Any) -> list[str] | None:
    return [str(piece) for piece in value] if isinstance(value, list) else None
