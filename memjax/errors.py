"""The base class of all errors whose message is written for a person, and what such a message is.

A message is one line of printable characters, shorter than a screen, whatever names or values of
files it quotes.
"""

import itertools
import logging
from collections.abc import Collection

_LONGEST = 1_500
"""Characters of a message."""
_LONGEST_NAME = 60


class MemjaxError(ValueError):
    """A setting, a file or an argument is unusable; the message names it and a remedy."""

    status: int = 2
    """The exit status of a command that ends with this error."""

    @classmethod
    def require(cls, condition: object, message: str) -> None:
        """Raise this error unless the condition holds."""
        if not condition:
            raise cls(message)

    @classmethod
    def require_one_of(cls, name: str, value: str, allowed: Collection[str]) -> None:
        """Raise this error unless `value` of the setting or argument `name` is one of `allowed`."""
        cls.require(value in allowed, f"{name}: {value!r}, expected one of {', '.join(allowed)}")

    def __str__(self) -> str:
        """Return the message as `message` makes it."""
        return message(super().__str__())


def message(text: str) -> str:
    """Return a text as one line of printable characters; the middle of a long one is left out.

    Line ends, codes that steer a terminal, marks that reverse text and half surrogates are escaped.
    """
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    if len(line) <= _LONGEST:
        return line
    half = _LONGEST // 2 - 30
    return f"{line[:half]} [{len(line) - 2 * half} characters left out] {line[-half:]}"


def few(names: Collection[object], most: int = 8) -> str:
    """Return the first names, long ones shortened, and the number of the others."""
    first = map(str, itertools.islice(names, most))
    shown = ", ".join(
        name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..." for name in first
    )
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def _printable(record: logging.LogRecord) -> bool:
    record.msg, record.args = message(record.getMessage()), ()
    return True


logging.getLogger("memjax").addFilter(_printable)  # The one log of the package.
