"""Processes meet at the address of process 0 before JAX's service starts there.

JAX aborts without a name where two processes, of different machines, have the same number.
"""

import contextlib
import os
import socket
import threading
import time

_MARK, _GO = "memjax", b"memjax: all are here"
_AGAIN = 0.2
"""Seconds between two attempts to reach process 0."""


def meet(address: str, count: int, number: int, server: socket.socket | None) -> None:
    """Wait until each number below `count` has come.

    Args:
      address: host:port of process 0.
      count: number of processes.
      number: that of this one.
      server: in process 0, a socket that listens there; it is closed.

    Raises:
      OSError: another process has the number or another count, or the port is another program's.
    """
    if server is not None:
        threading.Thread(target=_call, args=(server, count), daemon=True).start()
    host, _, port = address.rpartition(":")
    name = f"{_MARK} {count} {number} {socket.gethostname()}, pid {os.getpid()}"
    while True:
        answer = b""
        with (
            contextlib.suppress(OSError),
            socket.create_connection((host.strip("[]"), int(port)), timeout=10) as one,
        ):
            one.settimeout(None)
            one.sendall(name.encode())
            answer = one.recv(1000)
        if answer == _GO:
            return
        if answer:
            raise OSError(
                answer.decode().partition(": ")[2]
                if answer.startswith(_MARK.encode())
                else f"process {number} comes too late, or another program answers at {address}"
            )
        time.sleep(_AGAIN)


def _call(server: socket.socket, count: int) -> None:
    """Answer each process, and all when they are complete."""
    came: dict[int, tuple[socket.socket, str]] = {}
    with contextlib.ExitStack() as held:
        while len(came) < count or _forget_gone(came):
            one = held.enter_context(server.accept()[0])
            one.settimeout(5)
            with contextlib.suppress(OSError, ValueError):  # Other programs may try the port.
                mark, theirs, number, name = one.recv(1000).decode().split(" ", 3)
                before = came.get(int(number))
                if mark != _MARK:
                    continue
                if int(theirs) != count:
                    one.sendall(f"{_MARK}: process 0 waits for {count} processes".encode())
                elif before and not _is_closed(before[0]):
                    one.sendall(f"{_MARK}: process {number} is {before[1]} already".encode())
                else:
                    came[int(number)] = one, name
        server.close()
        for one, _ in came.values():
            with contextlib.suppress(OSError):
                one.sendall(_GO)


def _forget_gone(came: dict[int, tuple[socket.socket, str]]) -> bool:
    """Forget processes that ended before all had come; return whether there are any."""
    gone = [number for number, (one, _) in came.items() if _is_closed(one)]
    for number in gone:
        del came[number]
    return bool(gone)


def _is_closed(one: socket.socket) -> bool:
    """Return whether the process at the other end has gone; another may take its number."""
    one.setblocking(False)
    try:
        return one.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
