"""Detect dead, slow and preempted processes of a run.

A collective never returns if a process is missing. So each process sends a heartbeat to JAX's
coordination service every second. Process 0 detects missing, slow or preempted processes and
broadcasts the decision (continue, exit, or stop at a common step); the others follow it, and
monitor process 0.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from os import _exit
from typing import Any

import jax

from memjax.sharding import coordination
from memjax.sharding.processes import DEAD_AFTER, SLOW_AFTER, first_process

BEAT = 1.0
"""Seconds between heartbeats."""
_LOST = 5 * BEAT
"""Seconds of silence after which a process counts as dead once a collective has failed."""
_FOLDER = "memjax/heartbeats"
_RUNNING, _FINISHED, _FAILED, _CUT_OFF = "running", "finished", "failed", "cut off"


class ProcessMonitor:
    """Monitors the processes of a run, and signals, while its block runs.

    With one process it only measures waiting times and notes signals. An error that leaves the
    block in one process ends the others too, which log where it happened; so does a missing
    heartbeat. Errors with a `signal` are raised by all processes together.

    Args:
      log: called with messages for the user.
      dead_after: seconds without a heartbeat after which a process counts as dead; five are enough
        once a collective with it has failed.
      slow_after: seconds of waiting for a batch after which this is logged.
      ended: called with the reason and the exit status before the monitor ends this process.
    """

    def __init__(
        self,
        log: Callable[[str], None],
        dead_after: float = DEAD_AFTER,
        slow_after: float = SLOW_AFTER,
        ended: Callable[[str, int], None] = lambda why, status: None,
    ):
        self._ended = ended
        self._log, self._dead_after, self._slow_after = log, dead_after, slow_after
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        # This process's heartbeat; `point` is where it waits to learn where all stop.
        self._beat: dict[str, Any] = {
            "beat": 0,
            "state": _RUNNING,
            "why": "",
            "signal": 0,
            "point": None,
        }
        self._waiting_since: float | None = None
        # Received from the others; of the last heartbeat of each, its number and time.
        self._orders: dict[str, Any] = {"end": "", "agree": False, "stop": None}
        self._last: dict[int, tuple[int, float]] = {}
        self._first = f"process 0 (at {coordination.address()})"
        self._slow: set[int] = set()
        # Stop points passed so far, the point where all processes stop, and the lock that holds the
        # main thread until that point is known.
        self._lock = threading.Lock()
        self._points = 0
        self._stop = (0, 0)

    def __enter__(self) -> "ProcessMonitor":
        if jax.process_count() > 1:
            self._silence(0, 0)
            targets = [self._exchange] if first_process() else [self._exchange, self._guard]
            self._threads = [
                threading.Thread(target=target, name="memjax-monitor", daemon=True)
                for target in targets
            ]
            for thread in self._threads:
                thread.start()
            coordination.delay_abort(True)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        if not self._threads:
            return
        if error is None or hasattr(error, "signal"):
            self._finish(_FINISHED)
            return
        if isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error):
            # It may come from a collective with a process that is gone (XLA has no class for that).
            # The missing heartbeat identifies it; then `_end` runs before this wait is over.
            self._beat["state"] = _CUT_OFF
            time.sleep(_LOST + 10 * BEAT)
        self._finish(_FAILED, ": ".join([type(error).__name__, *str(error).splitlines()[:1]]))
        _let_others_end_first()
        coordination.skip_shutdown_barrier()

    def fail(self, why: str) -> None:
        """End this process, and so the others, for an error in a thread; no-op with one process."""
        if self._threads:
            self._finish(_FAILED, why)
            self._end(why)

    def _finish(self, state: str, why: str = "") -> None:
        """Send a last heartbeat and end the threads."""
        self._beat |= {"why": why, "state": state}
        self._stopped.set()
        for thread in self._threads:
            thread.join(5 * BEAT)
        coordination.delay_abort(False)

    def next(self, batches: Any) -> tuple[Any, float]:
        """Return the next of `batches` and the seconds spent waiting for it.

        The heartbeat reports the waiting time meanwhile.
        """
        began = self._waiting_since = time.monotonic()
        batch = next(batches)
        self._waiting_since = None
        return batch, time.monotonic() - began

    @contextlib.contextmanager
    def stop_requests(self) -> Iterator[None]:
        """Record SIGTERM and SIGINT while the block runs, for `stop_here`.

        A second signal ends the process at once. So does a first one outside the block, where there
        is nothing to save, and one whose process then waits `slow_after` for the same batch; the
        other processes name the missing one.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: Any) -> None:
            if self._beat["signal"]:
                self._end(f"a second signal came, number {number}", 128 + number)
            self._beat["signal"] = number
            late = threading.Timer(self._slow_after, self._give_up, [number, self._waiting_since])
            late.daemon = True
            late.start()

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _give_up(self, number: int, since: float | None) -> None:
        """Repeat a signal if the batch that the process waited for has not come."""
        if since is not None and self._waiting_since == since:
            self._log(
                f"stopped by signal {number} within {time.monotonic() - since:.0f} s of waiting for"
                " a batch. Run the same command to resume from the last checkpoint"
            )
            os.kill(os.getpid(), number)

    def stop_here(self) -> int:
        """Return the number of the signal to stop for now, or 0.

        All processes call this at the same points of the program and stop at the same one.
        """
        if not self._threads:
            return self._beat["signal"]
        with self._lock:
            self._points += 1
            point, number = self._stop
            return number if self._points == point else 0

    def _exchange(self) -> None:
        """Exchange heartbeats until stopped.

        The service may fail or hang with process 0; `_guard` handles that.
        """
        while True:
            last = self._stopped.is_set()
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                if first_process():
                    beats = {
                        int(key.split("/")[-2]): json.loads(text)
                        for key, text in coordination.read(_FOLDER)
                    }
                    self._decide(beats)
                    self._send_heartbeat()
                else:
                    self._send_heartbeat()
                    self._read_orders()
                self._follow()
            if last:
                return
            self._stopped.wait(BEAT / 10 if self._beat["signal"] or self._orders["agree"] else BEAT)

    def _send_heartbeat(self) -> None:
        """Send a heartbeat."""
        waiting = self._waiting_since
        self._beat["beat"] += 1
        sent = self._beat | {
            "who": f"process {jax.process_index()} ({socket.gethostname()}, pid {os.getpid()})",
            "waiting": 0.0 if waiting is None else time.monotonic() - waiting,
            "orders": self._orders,
        }
        coordination.write(f"{_FOLDER}/{jax.process_index()}/beat", json.dumps(sent))

    def _read_orders(self) -> None:
        """Read the heartbeat and the orders of process 0."""
        for _, text in coordination.read(f"{_FOLDER}/0"):
            beat = json.loads(text)
            self._silence(0, beat["beat"])
            self._first, self._orders = beat["who"], beat["orders"]
            if beat["state"] == _FAILED:
                self._orders["end"] = f"{beat['who']} failed: {beat['why']}"

    def _silence(self, process: int, beat: int) -> float:
        """Return the seconds since this heartbeat of a process, its last, was first seen."""
        now = time.monotonic()
        if self._last.get(process, (-1, now))[0] != beat:
            self._last[process] = (beat, now)
        return now - self._last[process][1]

    def _decide(self, beats: dict[int, dict[str, Any]]) -> None:
        """Decide the orders from the heartbeats of all processes."""
        cut_off = any(beat["state"] == _CUT_OFF for beat in (*beats.values(), self._beat))
        patience = min(self._dead_after, _LOST) if cut_off else self._dead_after
        for process in range(1, jax.process_count()):
            beat = beats.get(
                process, {"beat": 0, "who": f"process {process}", "state": _RUNNING, "waiting": 0.0}
            )
            silent = self._silence(process, beat["beat"])
            if beat["state"] == _FAILED:
                self._orders["end"] = f"{beat['who']} failed: {beat['why']}"
            elif beat["state"] != _FINISHED and silent > patience:
                self._orders["end"] = (
                    f"{beat['who']} has sent no heartbeat for {silent:.0f} s and counts as dead"
                )
        for process, beat in beats.items():
            self._report_slow(process, beat)
        signals = [beat["signal"] for beat in beats.values() if beat["signal"]]
        if signals and not self._orders["stop"]:
            points = [beat["point"] for beat in beats.values()]
            whole = len(points) == jax.process_count() and None not in points
            self._orders |= {
                "agree": True,
                "stop": [max(points) + 1, signals[0]] if whole else None,
            }

    def _report_slow(self, process: int, beat: dict[str, Any]) -> None:
        if not beat["waiting"]:
            self._slow.discard(process)
        elif beat["waiting"] > self._slow_after and process not in self._slow:
            self._slow.add(process)
            self._log(
                f"{beat['who']} has waited {beat['waiting']:.0f} s for its next batch, and the"
                " other processes wait for it: reading its data is slow (disk or network), not the"
                " computation"
            )

    def _follow(self) -> None:
        """Follow the orders: exit, or stop together."""
        orders = self._orders
        # An error that all processes raise by themselves ends this one in its main thread.
        if orders["end"] and not self._stopped.wait(BEAT):
            self._end(orders["end"])
        if orders["agree"] and self._beat["point"] is None:
            # The main thread waits at its next stop point until the common one is known: the first
            # that no process has passed.
            self._lock.acquire()
            self._beat["point"] = self._points
        if orders["stop"] and not any(self._stop):
            point, number = orders["stop"]
            self._stop = (point, number)
            self._orders["agree"] = False
            self._lock.release()

    def _guard(self) -> None:
        """Monitor process 0, which relays all heartbeats.

        Runs on a thread of its own, which a hanging service cannot block.
        """
        while not self._stopped.wait(BEAT):
            silent = time.monotonic() - self._last[0][1]
            if silent > 2 * BEAT and coordination.is_gone(timeout=BEAT):
                self._end(f"{self._first}, which coordinates the others, is gone")
            elif silent > self._dead_after:
                self._end(
                    f"{self._first}, which coordinates the others, has sent no heartbeat"
                    f" for {silent:.0f} s"
                )

    def _end(self, why: str, status: int = 1) -> None:
        """End this process.

        Its main thread may wait in a collective that never returns, and cannot be interrupted.
        """
        self._log(
            f"process {jax.process_index()} ends: {why}. Run the same command on all processes to"
            " resume from the last checkpoint"
        )
        self._ended(why, status)
        sys.stdout.flush()
        sys.stderr.flush()
        _let_others_end_first()
        _exit(status)


def _let_others_end_first() -> None:
    """Wait in process 0: JAX aborts the others as soon as it is gone."""
    if jax.process_count() > 1 and first_process():
        time.sleep(3 * BEAT)
