"""The status of a run: its sessions, their speed and the reason of each stop, in `status.json`.

A session is one start of the run, from the beginning of its process 0 to its end. The file lies
beside the checkpoints, in the bucket of a run that has one, so that any machine can read it while
the run trains. It never ends a run: a write that fails is logged once.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from etils import epath

from memjax.errors import MemjaxError, message
from memjax.files import explain, is_remote, read_json, write_object, write_text
from memjax.sharding import first_process

FILE = "status.json"
FORMAT = 1
EVERY = 30.0
"""Seconds between two writes at logged steps, at least; each save is followed by one too."""
PATIENCE = 2.0
"""Seconds that the end of a process waits for a write, at most."""
RUNNING, FINISHED, STOPPED, FAILED, KILLED = "running finished stopped failed killed".split()
"""States of a session. Stopped is by a signal or Ctrl-C, failed by an error or another process;
killed is without a last write."""
SAVES, EVALUATION, COMPILATION = "saves", "evaluation", "compilation"
"""Kinds of time apart from steps: the training step waits for a save to begin, held-out sequences
are evaluated, and the first step of a stage is compiled."""


class StatusError(MemjaxError):
    """The status of a run is absent or damaged; the message names the file."""


@dataclasses.dataclass
class Progress:
    """The steps of one stage in one session."""

    first: int
    """Step that the session began after."""
    last: int
    """Last step that was logged."""
    kept: int
    """Last of these steps that no later session repeated."""
    total: int
    """Steps of the stage."""
    seconds: float = 0.0
    """Seconds in steps."""
    tokens: int = 0
    """Tokens of these steps, over all devices."""
    peak_seconds: float = 0.0
    """Seconds per step at the peak rate of the devices; 0 if it is unknown."""

    @property
    def tokens_per_second(self) -> float:
        """Return the tokens per second in steps, over all devices."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def mfu(self) -> float | None:
        """Return the model FLOPs utilisation in steps, None if the peak is unknown."""
        if not (self.peak_seconds and self.seconds):
            return None
        return (self.last - self.first) * self.peak_seconds / self.seconds

    @property
    def counted(self) -> float:
        """Return the seconds in steps that no later session repeated."""
        steps = self.last - self.first
        return self.seconds * (self.kept - self.first) / steps if steps else 0.0


@dataclasses.dataclass
class Session:
    """One start of a run."""

    began: float
    """Unix time."""
    updated: float
    """Unix time of the last write."""
    processes: int
    devices: int
    device_kind: str
    state: str = RUNNING
    reason: str = ""
    """Line about its end, empty if it finished; of a running session, its activity."""
    saves: int = 0
    """Checkpoints that were written."""
    apart: dict[str, float] = dataclasses.field(default_factory=dict)
    """Seconds apart from steps, by kind."""
    stages: dict[str, Progress] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Shares:
    """Seconds of a run from its first start to its first finish, by use."""

    counted: float
    """Steps whose result was used."""
    lost: float
    """Steps that a later session repeated."""
    apart: Mapping[str, float]
    """The kinds of time apart from steps."""
    starting: float
    """The other time in sessions: to prepare, restore and report."""
    between: float
    """From the last write of a session to the beginning of the next one."""

    @property
    def total(self) -> float:
        """Return the sum of all."""
        return self.counted + self.lost + sum(self.apart.values()) + self.starting + self.between

    @property
    def goodput(self) -> float:
        """Return the share of the time in steps whose result was used."""
        return self.counted / self.total if self.total else 0.0


def shares(sessions: Sequence[Session]) -> Shares:
    """Return what the time of a run was used for.

    A run that is evaluated once more after its first finish took no longer.
    """
    ends = [i for i, session in enumerate(sessions, 1) if session.state == FINISHED]
    sessions = sessions[: min(ends, default=len(sessions))]
    steps = [progress for session in sessions for progress in session.stages.values()]
    counted = sum(progress.counted for progress in steps)
    lost = sum(progress.seconds for progress in steps) - counted
    apart: dict[str, float] = {}
    for session in sessions:
        for kind, seconds in session.apart.items():
            apart[kind] = apart.get(kind, 0.0) + seconds
    # Clocks of two machines may differ.
    inside = sum(max(session.updated - session.began, 0.0) for session in sessions)
    between = sum(
        max(after.began - before.updated, 0.0) for before, after in itertools.pairwise(sessions)
    )
    starting = max(inside - counted - lost - sum(apart.values()), 0.0)
    return Shares(counted, lost, apart, starting, between)


def read_status(folder: str | os.PathLike) -> list[Session]:
    """Return the sessions of a run, in order.

    Args:
      folder: its workdir, on disk or in a bucket (`gs://bucket/folder`).

    Raises:
      StatusError: there is no status, or it is damaged.
    """
    path = epath.Path(folder) / FILE
    progress = {
        **dict.fromkeys(("first", "last", "kept", "total", "tokens"), int),
        **dict.fromkeys(("seconds", "peak_seconds"), float),
    }
    session = {
        **dict.fromkeys(("began", "updated"), float),
        **dict.fromkeys(("processes", "devices", "saves"), int),
        **dict.fromkeys(("device_kind", "state", "reason"), str),
        "apart": {str: float},
        "stages": {str: progress},
    }
    found = read_json(path, StatusError, {"format": (FORMAT,), "sessions": [session]})
    return [
        Session(
            **{key: one[key] for key in session if key != "stages"},
            stages={
                name: Progress(**{key: steps[key] for key in progress})
                for name, steps in one["stages"].items()
            },
        )
        for one in found["sessions"]
    ]


def status_json(sessions: Sequence[Session]) -> dict[str, Any]:
    """Return the contents of the file: the sessions, and the numbers that follow from them."""
    used = shares(sessions)
    listed = [dataclasses.asdict(session) for session in sessions]
    for session, written in zip(sessions, listed, strict=True):
        for name, progress in session.stages.items():
            written["stages"][name] |= {
                "tokens_per_second": progress.tokens_per_second,
                "mfu": progress.mfu,
            }
    return {
        "format": FORMAT,
        "goodput": used.goodput,
        "shares": dataclasses.asdict(used),
        "sessions": listed,
    }


class Status:
    """The status of a run in this process, which writes it if it is process 0.

    Inside its block, an error is the reason of the session's end.

    Args:
      folder: the workdir, on disk or in a bucket; None writes nothing.
      log: called once if the file cannot be read or written.
      clock: Unix time in seconds.
    """

    def __init__(
        self,
        folder: epath.Path | None = None,
        log: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.time,
    ):
        self._path = folder / FILE if folder is not None else None
        self._log, self._clock = log, clock
        self._sessions: list[Session] = []
        self._written = 0.0
        self._thread: threading.Thread | None = None
        self._failed = False

    def __enter__(self) -> "Status":
        self._sessions = [*self._before(), self._session()]
        self._write(wait=True)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        self._end(*_state(error))

    def _before(self) -> list[Session]:
        """Return the earlier sessions; one without an end is marked as killed."""
        if self._path is None or not first_process():
            return []
        try:
            sessions = read_status(self._path.parent) if self._path.exists() else []
        except Exception as error:
            self._complain(f"{error}. A new file replaces it")
            return []
        for session in sessions:
            if session.state == RUNNING:
                session.state = KILLED
                session.reason = f"without a last write, while {session.reason}"
        return sessions

    def _session(self) -> Session:
        now = self._clock()
        kind = jax.devices()[0].device_kind
        counts = jax.process_count(), jax.device_count()
        return Session(now, now, *counts, kind, reason="preparing data")

    @property
    def _current(self) -> Session:
        if not self._sessions:
            self._sessions = [self._session()]
        return self._sessions[-1]

    def doing(self, activity: str) -> None:
        """Write the activity of the run, a participle such as `evaluating`."""
        self._current.reason = activity
        self._write()

    def begin_stage(self, name: str, step: int, total: int, peak_seconds: float = 0.0) -> None:
        """Begin the steps of a stage; those that earlier sessions made after `step` were lost.

        Args:
          name: the stage.
          step: step that it resumes from; 0 is its beginning.
          total: its steps.
          peak_seconds: seconds per step at the peak rate of the devices; 0 if it is unknown.
        """
        session = self._current
        for earlier in self._sessions:
            if progress := earlier.stages.get(name):
                progress.kept = max(progress.first, min(progress.kept, step))
        session.stages[name] = Progress(step, step, step, total, peak_seconds=peak_seconds)
        self.doing(f"training {name}")

    def stepped(self, name: str, step: int, tokens: int, seconds: float) -> None:
        """Add the steps since the last call.

        Args:
          name: the stage.
          step: the last of them.
          tokens: their tokens, over all devices.
          seconds: their seconds, without the time apart from steps.
        """
        progress = self._current.stages[name]
        progress.last = progress.kept = step
        progress.tokens += tokens
        progress.seconds += max(seconds, 0.0)
        if self._clock() - self._written >= EVERY:
            self._write()

    @contextlib.contextmanager
    def timing(self, kind: str) -> Iterator[None]:
        """Add the time of a block to a kind of time apart from steps."""
        began = time.monotonic()
        try:
            yield
        finally:
            apart = self._current.apart
            apart[kind] = apart.get(kind, 0.0) + time.monotonic() - began

    def saved(self) -> None:
        """Count a checkpoint, and write the steps before it."""
        self._current.saves += 1
        self._write()

    @property
    def apart(self) -> float:
        """Seconds of this session apart from steps, so far."""
        return sum(self._current.apart.values())

    def cut_off(self, why: str, status: int) -> None:
        """End the session before this process exits from a thread, as `ProcessMonitor` does.

        Args:
          why: the reason.
          status: the exit status, 128 or more after a signal.
        """
        self._end(STOPPED if status >= 128 else FAILED, message(why))

    def _end(self, state: str, reason: str) -> None:
        if self._sessions:
            self._current.state, self._current.reason = state, reason
            # In a thread of the monitor, the main thread may add a key meanwhile.
            with contextlib.suppress(RuntimeError):
                self._write(wait=True)

    def _write(self, wait: bool = False) -> None:
        """Write the file in a thread, unless the last write is still under way.

        Args:
          wait: wait for the last write and for this one, each PATIENCE seconds at most.
        """
        if self._path is None or not first_process():
            return
        if self._thread is not None and self._thread.is_alive():
            if not wait:
                return
            self._thread.join(PATIENCE)
        self._current.updated = self._written = self._clock()
        text = json.dumps(status_json(self._sessions), indent=1) + "\n"
        self._thread = threading.Thread(
            target=self._put, args=(self._path, text), name="memjax-status", daemon=True
        )
        self._thread.start()
        if wait:
            self._thread.join(PATIENCE)

    def _put(self, path: epath.Path, text: str) -> None:
        try:
            if is_remote(path):
                write_object(path, text.encode())
            else:
                write_text(path, text)
        except Exception as error:
            self._complain(f"{path}: the status cannot be written ({error}). The run continues")

    def _complain(self, text: str) -> None:
        if not self._failed:
            self._failed = True
            self._log(message(text))


def _state(error: BaseException | None) -> tuple[str, str]:
    """Return the state of a session that an error ended, and the reason."""
    if error is None:
        return FINISHED, ""
    line = explain(error) if isinstance(error, OSError) else message(str(error))
    if number := getattr(error, "signal", 0):
        return STOPPED, f"{signal.Signals(number).name}: {line}"
    if isinstance(error, KeyboardInterrupt):
        return STOPPED, "Ctrl-C"
    known = isinstance(error, (MemjaxError, OSError))
    return FAILED, message(line if known else f"{type(error).__name__}: {line}")
