"""The private parts of JAX that the process monitor needs are there, and do what it needs."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import memjax
from memjax.sharding import coordination

SERVICE = """
import socket
import jax
from memjax.sharding import coordination
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
assert coordination.address() is None
jax.distributed.initialize(f"127.0.0.1:{port}", 1, 0)
assert coordination.address() == f"127.0.0.1:{port}"
coordination.write("memjax/test/0/sign", "one")
coordination.write("memjax/test/0/sign", "two")
coordination.write("memjax/test/1/sign", "three")
assert sorted(coordination.read("memjax/test")) == [
    ("memjax/test/0/sign", "two"), ("memjax/test/1/sign", "three")
]
assert not coordination.is_gone(timeout=1.0)
coordination.skip_shutdown_barrier()
print("left")
"""
ABORT = """
import os
from memjax.sharding import coordination
coordination.delay_abort(True)
print("aborting", flush=True)
os.abort()
"""


def python(code: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_values_are_shared_and_a_process_can_leave_alone() -> None:
    process = python(SERVICE)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and said.split() == ["left"]


def test_a_service_where_nothing_listens_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(coordination, "address", lambda: f"127.0.0.1:{port}")
    assert coordination.is_gone(timeout=1.0)


def test_an_abort_is_delayed_by_six_seconds() -> None:
    with python(ABORT) as process:
        assert process.stdout is not None and process.stdout.readline() == "aborting\n"
        began = time.monotonic()
        assert process.wait(timeout=60) == -signal.SIGABRT
        assert time.monotonic() - began > 5.5


def test_no_other_file_uses_private_modules_of_jax() -> None:
    root = Path(memjax.__file__).parent
    users = [p.name for p in root.rglob("*.py") if "jax._src" in p.read_text(encoding="utf-8")]
    assert users == ["coordination.py"]
