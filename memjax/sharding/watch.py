"""How the processes of a run learn that one of them is gone, slow, or asked to stop.

A process of a pod or a job computes nothing alone: where one is missing, the others wait in an exchange that never ends. So each writes a
sign of life into the store that JAX's processes share, every second. The first process reads the signs of all, judges, and writes into its
own what all are to do; the others read that, and watch the first.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax._src import distributed  # The store has no public name; Orbax takes it from here too.

from memjax.sharding.processes import DEAD_AFTER, SLOW_AFTER, first_process

BEAT = 1.0
"""Seconds between two signs of life."""
_LOST = 5 * BEAT
"""Silence that tells who is gone once an exchange has failed."""
_FOLDER = "memjax/signs"
_RUNNING, _FINISHED, _FAILED, _CUT_OFF = "running", "finished", "failed", "cut off"


class Watch:
    """Watches the processes of a run, and for signals, while its block runs. Alone it only keeps the time and notes signals.

    An error that leaves the block in one process ends the others too, which say where it was; so does the silence of one. Errors with a
    `signal` all processes raise together.

    Args:
      say: is told what happens.
      dead_after: seconds of silence after which a process counts as dead; five are enough once an exchange with it has failed.
      slow_after: seconds of waiting for a batch after which that is said.
    """

    def __init__(self, say: Callable[[str], None], dead_after: float = DEAD_AFTER, slow_after: float = SLOW_AFTER):
        self._say, self._dead_after, self._slow_after = say, dead_after, slow_after
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        # What this process tells of itself.
        self._beats = 0
        self._state, self._why = _RUNNING, ""
        self._waiting_since: float | None = None
        self._asked = 0
        # What it knows of the others.
        self._orders: dict[str, Any] = {"end": "", "agree": False, "stop": None}
        self._last: dict[int, tuple[int, float]] = {}
        self._first = {"who": f"process 0 (at {distributed.global_state.coordinator_address})", "heard": 0.0}
        self._slow: set[int] = set()
        # Where it could have stopped so far, where all do, and what keeps it from going on until that is known.
        self._lock = threading.Lock()
        self._places = 0
        self._place: int | None = None
        self._stop = (0, 0)

    def __enter__(self) -> "Watch":
        if jax.process_count() > 1:
            self._first["heard"] = time.monotonic()
            targets = [self._talk] if first_process() else [self._talk, self._guard]
            self._threads = [threading.Thread(target=target, name="memjax-watch", daemon=True) for target in targets]
            for thread in self._threads:
                thread.start()
            _abort_late(True)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        if not self._threads:
            return
        if error is None or hasattr(error, "signal"):
            self._leave(_FINISHED)
            return
        if _is_cut_off(error):
            # Another process may be gone. Who it is shows when it stays silent; then `_end` comes before this is over.
            self._state = _CUT_OFF
            time.sleep(_LOST + 10 * BEAT)
        self._leave(_FAILED, ": ".join([type(error).__name__, *str(error).splitlines()[:1]]))
        _let_the_others_go_first()
        _forget_the_others()

    def _leave(self, state: str, why: str = "") -> None:
        """Gives a last sign and ends the threads."""
        self._why, self._state = why, state
        self._stopped.set()
        for thread in self._threads:
            thread.join(5 * BEAT)
        _abort_late(False)

    def next(self, batches: Any) -> tuple[Any, float]:
        """The next of `batches` and the seconds it was waited for; the other processes are told while it lasts."""
        began = self._waiting_since = time.monotonic()
        batch = next(batches)
        self._waiting_since = None
        return batch, time.monotonic() - began

    @contextlib.contextmanager
    def stop_requests(self) -> Iterator[None]:
        """SIGTERM and SIGINT are noted while the block runs, for `stop_here`; a second one ends the process at once.

        So does a first one outside the block, where there is nothing to save; the other processes then name the one that is gone.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: Any) -> None:
            if self._asked:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            self._asked = number

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop_here(self) -> int:
        """The number of the signal by which to stop now, or 0. All processes come by the same places and stop at the same one."""
        if not self._threads:
            return self._asked
        with self._lock:
            self._places += 1
            place, number = self._stop
            return number if self._places == place else 0

    def _talk(self) -> None:
        """Reads the others' signs and gives one, until stopped. The store may fail or hang with the first process: `_guard` sees to it."""
        while True:
            last = self._stopped.is_set()
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                if first_process():
                    signs = {int(key.split("/")[-2]): json.loads(text) for key, text in _store().key_value_dir_get(_FOLDER)}
                    self._judge(signs)
                    self._write()
                else:
                    self._write()
                    self._read_orders()
                self._follow()
            if last:
                return
            self._stopped.wait(BEAT / 10 if self._asked or self._orders["agree"] else BEAT)

    def _write(self) -> None:
        """Gives a sign of life."""
        waiting, self._beats = self._waiting_since, self._beats + 1
        sign = {
            "beat": self._beats,
            "who": f"process {jax.process_index()} ({socket.gethostname()}, pid {os.getpid()})",
            "state": self._state,
            "why": self._why,
            "waiting": 0.0 if waiting is None else time.monotonic() - waiting,
            "asked": self._asked,
            "place": self._place,
            "orders": self._orders,
        }
        _store().key_value_set(f"{_FOLDER}/{jax.process_index()}/sign", json.dumps(sign), allow_overwrite=True)

    def _read_orders(self) -> None:
        """Reads what the first process says."""
        for _, text in _store().key_value_dir_get(f"{_FOLDER}/0"):
            sign = json.loads(text)
            if self._is_new(0, sign["beat"]):
                self._first = {"who": sign["who"], "heard": time.monotonic()}
            self._orders = sign["orders"]
            if sign["state"] == _FAILED:
                self._orders["end"] = f"{sign['who']} failed: {sign['why']}"

    def _is_new(self, process: int, beat: int) -> bool:
        """Whether this is the first time that this beat of a process is seen."""
        if self._last.get(process, (-1, 0.0))[0] == beat:
            return False
        self._last[process] = (beat, time.monotonic())
        return True

    def _judge(self, signs: dict[int, dict[str, Any]]) -> None:
        """Makes orders of the signs of all processes."""
        cut_off = any(sign["state"] == _CUT_OFF for sign in (*signs.values(), {"state": self._state}))
        patience = min(self._dead_after, _LOST) if cut_off else self._dead_after
        for process in range(1, jax.process_count()):
            sign = signs.get(process, {"beat": 0, "who": f"process {process}", "state": _RUNNING, "waiting": 0.0})
            self._is_new(process, sign["beat"])
            silent = time.monotonic() - self._last[process][1]
            if sign["state"] == _FAILED:
                self._orders["end"] = f"{sign['who']} failed: {sign['why']}"
            elif sign["state"] != _FINISHED and silent > patience:
                self._orders["end"] = f"{sign['who']} has given no sign of life for {silent:.0f} s and counts as dead"
        for process, sign in signs.items():
            self._report_slow(process, sign)
        asked = [sign["asked"] for sign in signs.values() if sign["asked"]]
        if asked and not self._orders["stop"]:
            places = [sign["place"] for sign in signs.values()]
            whole = len(places) == jax.process_count() and None not in places
            self._orders |= {"agree": True, "stop": [max(places) + 1, asked[0]] if whole else None}

    def _report_slow(self, process: int, sign: dict[str, Any]) -> None:
        if not sign["waiting"]:
            self._slow.discard(process)
        elif sign["waiting"] > self._slow_after and process not in self._slow:
            self._slow.add(process)
            self._say(
                f"{sign['who']} has waited {sign['waiting']:.0f} s for its next batch, and the others for it: its data are slow to read"
                " (disk or network), not the computation"
            )

    def _follow(self) -> None:
        """Does as the orders say: end, or stop together."""
        orders = self._orders
        # An error that all processes come to by themselves leaves this one by its main thread.
        if orders["end"] and not self._stopped.wait(BEAT):
            self._end(orders["end"])
        if orders["agree"] and self._place is None:
            # The main thread waits where it could stop next, until it is known where all do: the first place none has passed.
            self._lock.acquire()
            self._place = self._places
        if orders["stop"] and not any(self._stop):
            place, number = orders["stop"]
            self._stop = (place, number)
            self._orders["agree"] = False
            self._lock.release()

    def _guard(self) -> None:
        """Watches the first process, through which the others speak; on a thread that its silence cannot hang."""
        while not self._stopped.wait(BEAT):
            silent = time.monotonic() - self._first["heard"]
            if silent > 2 * BEAT and _coordinator_is_gone():
                self._end(f"{self._first['who']}, through which the others speak, is gone")
            elif silent > self._dead_after:
                self._end(f"{self._first['who']}, through which the others speak, has given no sign of life for {silent:.0f} s")

    def _end(self, why: str) -> None:
        """Ends this process: its main thread may wait in an exchange that never ends, and nothing else can reach it."""
        self._say(
            f"process {jax.process_index()} ends: {why}. The same command, on all processes, goes on from the last checkpoint"
        )
        sys.stdout.flush()
        sys.stderr.flush()
        _let_the_others_go_first()
        os._exit(1)


def _is_cut_off(error: BaseException) -> bool:
    """Whether this may come of an exchange with a process that is gone; XLA has no class for that."""
    return isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)


def _let_the_others_go_first() -> None:
    """JAX aborts the others as soon as the first process is gone."""
    if first_process():
        time.sleep(3 * BEAT)


def _store() -> Any:
    return distributed.global_state.client


def _coordinator_is_gone() -> bool:
    """Whether the first process's host says that nothing listens where it did."""
    host, _, port = str(distributed.global_state.coordinator_address).rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=BEAT).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def _abort_late(late: bool) -> None:
    """Lets an abort wait for six seconds, or no longer.

    JAX aborts a process as soon as the first one is gone and does not say who that was; in this time `Watch` does. The handler is C's
    `sleep` itself, called with the signal's number, 6, since no Python can run in a handler.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p) if late else None)


def _forget_the_others() -> None:
    """Lets JAX end without the goodbye that it waits for, of processes that are gone: its client and service are never destroyed."""
    state = distributed.global_state
    for held in (state.client, state.service):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))
    state.client = state.service = None
