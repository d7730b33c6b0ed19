"""Several processes as one program: how they find each other, agree, and learn that one of them is gone.

A process of a pod or a job computes nothing alone: where one is missing, the others wait in an exchange that never ends. So each gives a sign
of life every second, and says what it is waiting for; the others end, and name it, when it has been silent for `DEAD_AFTER` seconds.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # The store that processes share has no public name; Orbax takes it from here too.
from jax.experimental import multihost_utils

DEAD_AFTER = float(os.environ.get("MEMJAX_DEAD_AFTER_SECONDS", "60"))
"""Seconds without a sign of life after which a process counts as dead."""
SLOW_AFTER = float(os.environ.get("MEMJAX_SLOW_AFTER_SECONDS", "20"))
"""Seconds of waiting for its own data after which a process is reported."""
BEAT = 1.0
_PREFIX = "memjax/alive/"
_FINISHED, _FAILED = "finished", "failed"


class ProcessesError(RuntimeError):
    """The processes of a program cannot find each other, or one of them is gone; the message names which."""


def connect() -> None:
    """Joins the processes of this program, before JAX looks for devices; alone it does nothing.

    On Cloud TPU, GKE and Slurm, JAX finds the others itself. Elsewhere JAX_COORDINATOR_ADDRESS (host:port of process 0),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID say where they are.

    Raises:
      ProcessesError: some of the three variables are missing or wrong, or the others do not answer.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: os.environ[name] for name in names if os.environ.get(name)}
    patience = max(10, int(DEAD_AFTER))
    try:
        if not given:
            _join_what_is_found(patience)
        elif len(given) < len(names):
            raise ProcessesError(
                f"{', '.join(given)} is set and {', '.join(name for name in names if name not in given)} is not; several processes"
                " need all three, one process none"
            )
        elif int(given["JAX_NUM_PROCESSES"]) > 1:
            jax.distributed.initialize(
                given["JAX_COORDINATOR_ADDRESS"],
                int(given["JAX_NUM_PROCESSES"]),
                int(given["JAX_PROCESS_ID"]),
                heartbeat_timeout_seconds=patience,
            )
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        raise ProcessesError(f"the processes do not come together ({error}); given were {given or 'no variables'}") from error


def _join_what_is_found(patience: int) -> None:
    """Joins whatever cluster JAX recognises, if it does."""
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=patience)
    except ValueError as error:
        if "should be defined" not in str(error):
            raise


def first_process() -> bool:
    """Whether this is the process that writes what is written once."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def agreed(value: Any) -> Any:
    """What the first process says of a number or a truth value, on every process; a collective, so all must ask."""
    if jax.process_count() == 1:
        return value
    return type(value)(multihost_utils.broadcast_one_to_all(np.asarray(value)))


def require_equal(value: str, what: str) -> None:
    """Raises ProcessesError if a text is not the same on every process."""
    if jax.process_count() == 1:
        return
    import hashlib

    digest = np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8)
    everyone = multihost_utils.process_allgather(digest)
    different = [i for i, theirs in enumerate(everyone) if (theirs != everyone[0]).any()]
    if different:
        raise ProcessesError(f"{what} of process {different[0]} is not that of process 0; all processes need the same")


class Watch:
    """Gives signs of life and looks for those of the others, on a thread, while its block runs. Alone it only keeps the time.

    An error that leaves the block is passed on to the other processes, which end too.
    """

    def __init__(self, say: Callable[[str], None], dead_after: float = DEAD_AFTER, slow_after: float = SLOW_AFTER):
        self._say, self._dead_after, self._slow_after = say, dead_after, slow_after
        self._waiting_since: float | None = None
        self._state = ""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memjax-watch", daemon=True)
        self._seen: dict[int, tuple[dict[str, Any], float]] = {}
        self._reported: set[int] = set()

    def __enter__(self) -> "Watch":
        if jax.process_count() > 1:
            self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _: object) -> None:
        if not self._thread.is_alive():
            return
        if isinstance(error, jax.errors.JaxRuntimeError):
            # An exchange with a process that is gone fails at once; who it is shows when it stays silent.
            self._thread.join(self._dead_after + 5 * BEAT)
        self._state = _FINISHED if error is None or _asked_to_stop(error) else f"{_FAILED}: {error}"
        self._stopped.set()
        self._thread.join(5 * BEAT)

    def next(self, batches: Any) -> tuple[Any, float]:
        """The next of `batches` and the seconds it was waited for; the other processes are told while it lasts."""
        began = self._waiting_since = time.monotonic()
        batch = next(batches)
        self._waiting_since = None
        return batch, time.monotonic() - began

    def _watch(self) -> None:
        lost = None
        while True:
            last = self._stopped.is_set()
            try:
                self._beat()
                if last:
                    return
                self._look()
                lost = None
            except jax.errors.JaxRuntimeError:
                lost = lost or time.monotonic()
                if last or time.monotonic() - lost > self._dead_after:
                    self._end(f"process 0, through which the others speak, has not answered for {self._dead_after:.0f} s")
            self._stopped.wait(BEAT)

    def _beat(self) -> None:
        waiting = self._waiting_since
        sign = {
            "time": time.monotonic(),
            "host": f"{socket.gethostname()}, pid {os.getpid()}",
            "waiting": 0.0 if waiting is None else time.monotonic() - waiting,
            "state": self._state,
        }
        _store().key_value_set(f"{_PREFIX}{jax.process_index()}", json.dumps(sign), allow_overwrite=True)

    def _look(self) -> None:
        now = time.monotonic()
        for key, text in _store().key_value_dir_get(_PREFIX):
            process, sign = int(key.rsplit("/", 1)[1]), json.loads(text)
            before, since = self._seen.get(process, (None, now))
            if before is None or sign["time"] != before["time"]:
                since = now
            self._seen[process] = (sign, since)
            if process != jax.process_index():
                self._judge(process, sign, now - since)

    def _judge(self, process: int, sign: dict[str, Any], silent: float) -> None:
        who = f"process {process} ({sign['host']})"
        if sign["state"].startswith(_FAILED):
            self._end(f"{who} {sign['state']}")
        elif sign["state"] != _FINISHED and silent > self._dead_after:
            self._end(f"{who} has given no sign of life for {silent:.0f} s and counts as dead")
        elif sign["waiting"] > self._slow_after and process not in self._reported:
            self._reported.add(process)
            self._say(
                f"{who} has waited {sign['waiting']:.0f} s for its next batch, and the others for it: its data are slow to read (disk or"
                " network), not the computation"
            )
        elif not sign["waiting"]:
            self._reported.discard(process)

    def _end(self, why: str) -> None:
        """Ends this process: its main thread may wait in an exchange that never ends, and nothing else can reach it."""
        self._say(
            f"process {jax.process_index()} ends: {why}. The same command, on all processes, goes on from the last checkpoint"
        )
        os._exit(1)


def _asked_to_stop(error: BaseException) -> bool:
    return hasattr(error, "signal") or isinstance(error, (KeyboardInterrupt, SystemExit))


def _store() -> Any:
    return distributed.global_state.client
