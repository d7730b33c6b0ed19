"""A reporter that records what it would show."""

import contextlib
from collections.abc import Iterator

from rich.console import Console

from memjax.progress import Bar, Reporter


class _RecordedBar(Bar):
    def __init__(self, steps: list[int], texts: list[str]):
        self._steps, self._texts = steps, texts

    def advance(self, steps: int = 1, text: str | None = None) -> None:
        """Record the steps and the text."""
        self._steps.append(steps)
        if text is not None:
            self._texts.append(text)


class Recorder(Reporter):
    """A silent reporter.

    Attributes:
      bars: from the name of a bar to the steps of each call of `advance`.
      totals: from the name of a bar to its total.
      texts: all texts beside bars.
    """

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.bars: dict[str, list[int]] = {}
        self.totals: dict[str, int] = {}
        self.texts: list[str] = []

    @contextlib.contextmanager
    def bar(self, name: str, total: int, done: int = 0) -> Iterator[Bar]:
        """Record the bar."""
        self.totals[name] = total
        yield _RecordedBar(self.bars.setdefault(name, []), self.texts)
