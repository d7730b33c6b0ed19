"""Processes meet once; who has the number of another one, or comes too late, is told so."""

import concurrent.futures
import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from memjax.sharding.roll_call import meet

Pool = concurrent.futures.ThreadPoolExecutor


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def at(server: socket.socket) -> str:
    return "{}:{}".format(*server.getsockname())


def test_all_go_when_the_last_has_come(server: socket.socket) -> None:
    address = at(server)
    with Pool() as pool:
        others = [pool.submit(meet, address, 4, number, None) for number in (3, 1)]
        zero = pool.submit(meet, address, 4, 0, server)
        assert not concurrent.futures.wait([zero, *others], timeout=0.5).done
        meet(address, 4, 2, None)
        assert [each.result(timeout=20) for each in (zero, *others)] == [None] * 3
    assert server.fileno() == -1, "JAX needs the port"
    socket.create_server(server_address(address)).close()


def server_address(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def knock(address: str, said: bytes) -> socket.socket:
    one = socket.create_connection(server_address(address), timeout=20)
    one.sendall(said)
    return one


@pytest.mark.parametrize(
    ("count", "number", "message"),
    [
        (3, 1, "process 1 is otherhost, pid 7 already"),
        (3, 0, "process 0 is .* already"),
        (2, 1, "process 0 waits for 3 processes"),
    ],
)
def test_a_number_of_another_machine_or_another_count_is_named(
    server: socket.socket, count: int, number: int, message: str
) -> None:
    address = at(server)
    with Pool() as pool, knock(address, b"memjax 3 1 otherhost, pid 7"):
        zero = pool.submit(meet, address, 3, 0, server)
        with knock(address, b"memjax 3 0 a second process 0") as second:
            second.settimeout(0.2)
            with contextlib.suppress(TimeoutError):  # It may come before or after the other.
                assert b"process 0 is " in second.recv(1000)
            with pytest.raises(OSError, match=message):
                meet(address, count, number, None)
            meet(address, 3, 2, None)
        with contextlib.suppress(OSError):
            zero.result(timeout=20)


def test_a_process_that_ended_is_replaced_and_noise_is_ignored(server: socket.socket) -> None:
    address = at(server)
    noise = b"GET / HTTP/1.1\r\n\r\n", b"\xff\x00", b"memjax", b"memjax 2 x y", b"a 2 1 b"
    # All before process 0, which is then the last of two that came.
    for said in (*noise, b"memjax 2 1 a process that ends"):
        knock(address, said).close()
    with Pool() as pool:
        zero = pool.submit(meet, address, 2, 0, server)
        meet(address, 2, 1, None)
        zero.result(timeout=20)


def test_who_comes_where_another_program_answers_is_told(server: socket.socket) -> None:
    def answer() -> None:
        one, _ = server.accept()
        one.sendall(b"\x00\x00\x12\x04")  # As JAX's service does.
        one.close()

    threading.Thread(target=answer, daemon=True).start()
    with pytest.raises(OSError, match=f"process 1 comes too late, .* answers at {at(server)}"):
        meet(at(server), 2, 1, None)
