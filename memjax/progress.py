"""Progress bars with the time left on a terminal, and a line every few seconds in a log; tables.

`track` and `bar` draw on the active reporter; by default there is none, and nothing is shown.
"""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from datetime import timedelta
from typing import Any, TypeVar, cast

from rich.box import HEAVY_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

LOG_SECONDS = 15.0
"""Seconds between two lines where the output is no terminal."""
_LINE = 10_000
"""Columns of text that a table may have where the output is no terminal."""
_COLUMNS = (
    TextColumn("{task.description:<14}"),
    BarColumn(bar_width=24),
    MofNCompleteColumn(),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
    TextColumn("{task.fields[text]}"),
)

Item = TypeVar("Item")


class Bar:
    """One bar, or its lines in a log."""

    def __init__(
        self, console: Console, name: str, total: int, done: int, progress: Progress | None
    ):
        self._console, self._name, self._total = console, _marked(name), total
        self._done = self._start = done
        self._progress = progress
        self.task = None
        if progress:
            self.task = progress.add_task(self._name, total=total, completed=done, text="")
        self._began = self._logged = time.monotonic()
        self._text = ""

    def advance(self, steps: int = 1, text: str | None = None) -> None:
        """Count `steps` as done, and show `text` beside the bar until the next text."""
        self._done += steps
        self._text = self._text if text is None else text
        if self._progress is not None and self.task is not None:
            fields: dict[str, Any] = {} if text is None else {"text": _marked(text)}
            self._progress.update(self.task, completed=self._done, **fields)
            return
        now = time.monotonic()
        if now - self._logged >= LOG_SECONDS or (
            self._done >= self._total and now - self._began >= LOG_SECONDS
        ):
            self._logged = now
            left = (
                (now - self._began) / max(self._done - self._start, 1) * (self._total - self._done)
            )
            self._console.print(
                f"{self._name} {self._done}/{self._total}, {timedelta(seconds=round(left))} left "
                f" {_marked(self._text)}"
            )


class Reporter:
    """Logs lines, prints tables and draws bars on one console: by default that of stdout.

    Args:
      console: the console.
      stderr: without a console, one of stderr.
    """

    def __init__(self, console: Console | None = None, stderr: bool = False):
        self.console = console or Console(soft_wrap=True, stderr=stderr)
        self._progress: Progress | None = None

    def log(self, text: str) -> None:
        """Print a line of plain text above any bar."""
        self.console.print(_plain(text))

    def table(
        self,
        title: str,
        columns: Sequence[str],
        rows: Iterable[Sequence[str]],
        caption: str = "",
        left: int = 1,
    ) -> None:
        """Print a table of plain text.

        Args:
          title: stands above it.
          columns: headings; if all are empty, there are neither headings nor a frame.
          rows: a text per column.
          caption: stands below it.
          left: number of columns that are aligned on the left; the others are on the right.
        """
        if not self.console.is_terminal:
            self.console.width = _LINE
        framed = any(columns)
        table = Table(box=HEAVY_HEAD if framed else None, show_header=framed)
        for place, column in enumerate(columns):
            justify = "left" if place < left else "right"
            table.add_column(_plain(column), justify=justify, overflow="fold")
        for row in rows:
            table.add_row(*map(_plain, row))
        for part in filter(None, (title and _plain(title), table, caption and _plain(caption))):
            self.console.print(part)

    @contextlib.contextmanager
    def bar(self, name: str, total: int, done: int = 0) -> Iterator[Bar]:
        """Show a bar of `total` steps, `done` of which are complete; bars may be nested."""
        if not self.console.is_terminal:
            yield Bar(self.console, name, total, done, None)
            return
        with contextlib.ExitStack() as stack:
            if self._progress is None:
                self._progress = stack.enter_context(Progress(*_COLUMNS, console=self.console))
                stack.callback(setattr, self, "_progress", None)
                yield Bar(self.console, name, total, done, self._progress)
                return
            shown = Bar(self.console, name, total, done, self._progress)
            if shown.task is not None:
                stack.callback(self._progress.remove_task, shown.task)
            yield shown

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make this the reporter of `track` and `bar` in this thread."""
        token = _ACTIVE.set(self)
        try:
            yield
        finally:
            _ACTIVE.reset(token)
            # A loop that an error ended may still hold its bar.
            if self._progress is not None:
                self._progress.stop()


def _plain(text: str) -> Text:
    """Return a text without markup, emoji or codes that steer a terminal: they are escaped."""
    return Text("".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text))


def _marked(text: str) -> str:
    """Return what `_plain` returns in rich's markup."""
    return _plain(text).markup


SILENT = Reporter(Console(quiet=True))
"""A reporter that shows nothing."""
_ACTIVE: contextvars.ContextVar[Reporter] = contextvars.ContextVar("reporter")


def log(text: str) -> None:
    """Print a line of plain text on the active reporter."""
    _ACTIVE.get(SILENT).log(text)


def bar(name: str, total: int, done: int = 0) -> contextlib.AbstractContextManager[Bar]:
    """Show a bar on the active reporter; see `Reporter.bar`."""
    return _ACTIVE.get(SILENT).bar(name, total, done)


def track(iterable: Iterable[Item], name: str, total: int | None = None) -> Iterator[Item]:
    """Yield the items of `iterable`, and show on the active reporter how many are done.

    Args:
      iterable: what to loop over.
      name: a word or two that describe the loop.
      total: the number of items; by default the length of `iterable`, which must have one.
    """
    with bar(name, len(cast(Sized, iterable)) if total is None else total) as shown:
        for item in iterable:
            yield item
            shown.advance()
