"""What a person sees while a run works: bars with the time left on a terminal, a line now and then in a log."""

import contextlib
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOG_SECONDS = 15.0
"""Time between two lines when the output is no terminal."""


class Bar:
    """One bar; `advance` moves it."""

    def __init__(self, console: Console, name: str, total: int, done: int, progress: Progress | None):
        self._console, self._name, self._total, self._done, self._start = console, name, total, done, done
        self._progress = progress
        self._task = progress.add_task(name, total=total, completed=done, text="") if progress else None
        self._began = self._said = time.monotonic()
        self._text = ""

    def advance(self, steps: int = 1, text: str | None = None) -> None:
        """Moves on by `steps`; `text` is shown beside the bar until the next one."""
        self._done += steps
        self._text = self._text if text is None else text
        if self._progress is not None and self._task is not None:
            fields: dict[str, Any] = {} if text is None else {"text": escape(text)}
            self._progress.update(self._task, completed=self._done, **fields)
            return
        now = time.monotonic()
        if now - self._said >= LOG_SECONDS or (self._done >= self._total and now - self._began >= LOG_SECONDS):
            self._said = now
            left = (now - self._began) / max(self._done - self._start, 1) * (self._total - self._done)
            self._console.print(
                f"{self._name} {self._done}/{self._total}, {timedelta(seconds=round(left))} left  {escape(self._text)}"
            )


class Reporter:
    """Prints and draws bars on one console."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(soft_wrap=True)

    def silenced(self) -> "Reporter":
        """One that shows nothing: of several processes one speaks."""
        return Reporter(Console(quiet=True))

    def say(self, text: str) -> None:
        """A line of plain text, above any bar."""
        self.console.print(escape(text), highlight=False)

    @contextlib.contextmanager
    def bar(self, name: str, total: int, done: int = 0) -> Iterator[Bar]:
        """A bar of `total` steps of which `done` are behind us."""
        if not self.console.is_terminal:
            yield Bar(self.console, name, total, done, None)
            return
        columns = (
            TextColumn("{task.description:<14}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
        )
        with Progress(*columns, console=self.console) as progress:
            yield Bar(self.console, name, total, done, progress)
