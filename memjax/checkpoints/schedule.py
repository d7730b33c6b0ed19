"""The schedule of checkpoints: every so many steps, and every so many minutes in between."""

import dataclasses
import time
from collections.abc import Callable


@dataclasses.dataclass
class Schedule:
    """The save policies of one stage, apart from its best and its last step."""

    steps: int
    """Steps between two checkpoints."""
    minutes: float = 0.0
    """Minutes after the last save, whatever its reason, until another is due; 0 is never."""
    clock: Callable[[], float] = time.monotonic
    """Seconds since some moment."""
    agree: Callable[[bool], bool] = bool
    """Maps this process's decision to one that holds for all. Processes that save together must
    decide alike; they take a broadcast from the first of them."""
    clock_every: int = 1
    """Steps between two checks of the clock: `agree` waits for the device."""

    def __post_init__(self) -> None:
        self._last = self.clock()

    def due(self, step: int) -> bool:
        """Return whether to save after `step`.

        Every process calls it at every step, so that all take part in `agree`.
        """
        late = (
            self.minutes > 0
            and step % self.clock_every == 0
            and self.agree(self.clock() - self._last >= 60 * self.minutes)
        )
        return late or step % self.steps == 0

    def saved(self) -> None:
        """Restart the clock of `minutes`."""
        self._last = self.clock()
