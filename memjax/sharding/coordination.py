"""The coordination service that JAX's processes share, beyond JAX's public API.

`jax.distributed` has no public way to read and write the service's key-value store, to reach its
address, or to end a process while another one is gone. This file is the only one of memjax that
uses a private module of JAX, and C. Every new version of JAX needs its tests
(tests/sharding/test_coordination.py, tests/sharding/test_processes.py); Orbax uses the same module.
"""

import ctypes
import os
import signal
import socket
import sys
from typing import Any

from jax._src import distributed


def address() -> str | None:
    """Return host:port of the service, which runs in process 0; None in a single process."""
    return distributed.global_state.coordinator_address


def place() -> str:
    """Return the number of this process and of all, and the address of process 0."""
    state = distributed.global_state
    return (
        f"process {state.process_id} of {state.num_processes} (process 0 is at"
        f" {state.coordinator_address})"
    )


def reserve(address: str, count: int, number: int) -> socket.socket | None:
    """Reserve the number of this process among those of this machine, until it ends (on Linux).

    In process 0, return a socket that listens at its port: JAX may crash where it is not free.

    Raises:
      OSError: another process has the number, or the port.
    """
    state = distributed.global_state
    state.coordinator_address, state.num_processes, state.process_id = address, count, number
    if sys.platform == "linux":
        _held.append(socket.socket(socket.AF_UNIX))
        _held[-1].bind(f"\0memjax {address} {number}"[:100])
    if number == 0:
        bound = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", "")
        host, _, port = (bound or f":{address.rpartition(':')[2]}").rpartition(":")
        both = not host and socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
        place = host.strip("[]"), int(port)
        return socket.create_server(place, family=family, dualstack_ipv6=both)
    return None


_held: list[socket.socket] = []


def read(prefix: str) -> list[tuple[str, str]]:
    """Return the keys below `prefix` and their values.

    Raises:
      jax.errors.JaxRuntimeError: the service does not answer.
    """
    return _client().key_value_dir_get(prefix)


def write(key: str, value: str) -> None:
    """Write a value, also over an older one.

    Raises:
      jax.errors.JaxRuntimeError: the service does not answer.
    """
    _client().key_value_set(key, value, allow_overwrite=True)


def is_gone(timeout: float) -> bool:
    """Return True if the host of the service refuses connections, False if it does not answer.

    Args:
      timeout: seconds to wait for an answer.
    """
    host, _, port = str(address()).rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def delay_abort(delayed: bool) -> None:
    """Delay an abort of this process by six seconds, or no longer.

    JAX aborts a process as soon as process 0 is gone, without naming it; `ProcessMonitor` names it
    in this time. The handler is C's `sleep` itself, called with the signal's number, 6, because no
    Python can run in the handler.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p) if delayed else None)


def skip_shutdown_barrier() -> None:
    """Let this process end without the shutdown barrier, which waits for processes that are gone.

    JAX's client and service are never destroyed: one reference to each is kept for ever.
    """
    state = distributed.global_state
    for held in (state.client, state.service):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))
    state.client = state.service = None


def _client() -> Any:
    return distributed.global_state.client
