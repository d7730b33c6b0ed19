"""launch/local_multiprocess.sh, for real: processes, their environment, their ends, and JAX over two of them."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "local_multiprocess.sh"

MEET = """
import os, jax
jax.distributed.initialize(num_processes=int(os.environ["JAX_NUM_PROCESSES"]), process_id=int(os.environ["JAX_PROCESS_ID"]))
from jax.experimental import multihost_utils
print("met", jax.device_count(), multihost_utils.process_allgather(jax.numpy.array(jax.process_index() + 1)).tolist())
"""


@pytest.fixture
def start(tmp_path):
    """Starts the script with a program in memjax's place; its output is read through `stdout`."""
    started = []

    def call(program: str, *args: str, **env: str) -> subprocess.Popen:
        path = tmp_path / "program.py"
        path.write_text(program)
        process = subprocess.Popen(
            [SCRIPT, *args],
            env=os.environ | {"MEMJAX": f"{sys.executable} {path}"} | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield call
    for process in started:
        process.terminate()  # and with it what it has started
        process.wait(60)
        if process.stdout:
            process.stdout.close()


def test_every_process_is_told_who_it_is(start):
    program = (
        'import os, sys; print(sys.argv[1:]); [print(f"{k}={v}") for k, v in os.environ.items() if k[:3] in ("JAX", "XLA")]'
    )
    run = start(program, "3", "train", "--a=b c", DEVICES="4", XLA_FLAGS="--given")
    lines = run.communicate(timeout=100)[0].splitlines()
    assert run.returncode == 0
    assert [sum(line.startswith(f"[{i}] ['train', '--a=b c']") for line in lines) for i in range(3)] == [1, 1, 1]
    addresses = {line.split("=")[1] for line in lines if "JAX_COORDINATOR_ADDRESS=" in line}
    assert len(addresses) == 1
    host, port = addresses.pop().split(":")
    assert host == "127.0.0.1"
    with socket.socket() as free:
        free.bind((host, int(port)))
    for i in range(3):
        expected = {
            f"JAX_PROCESS_ID={i}",
            "JAX_NUM_PROCESSES=3",
            "JAX_PLATFORMS=cpu",
            f"JAX_COORDINATOR_BIND_ADDRESS={host}:{port}",
        }
        expected |= {"XLA_FLAGS=--given --xla_force_host_platform_device_count=4"}
        assert {f"[{i}] {line}" for line in expected} <= set(lines)


def test_the_first_failure_ends_the_others_and_is_the_exit_status(start, tmp_path):
    program = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("told to leave", flush=True), sys.exit(9)))
open(os.environ["UP"] + os.environ["JAX_PROCESS_ID"], "w")
if os.environ["JAX_PROCESS_ID"] == "1":
    while not os.path.exists(os.environ["UP"] + "0"):
        time.sleep(0.01)
    sys.exit(5)
time.sleep(60)
"""
    run = start(program, "2", "train", UP=str(tmp_path / "up"))
    said = run.communicate(timeout=100)[0]
    assert run.returncode == 5
    assert "process 1 ended with exit status 5" in said
    assert "[0] told to leave" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_process_once(start, number):
    program = f"""
import os, signal, sys, time
def leave(*_):
    print("asked", flush=True)
    time.sleep(0.5 + int(os.environ["JAX_PROCESS_ID"]))  # a second one would be heard meanwhile
    sys.exit({128 + number})
signal.signal({int(number)}, leave)
print("ready", flush=True)
time.sleep(60)
"""
    run = start(program, "2", "train")
    ready = {run.stdout.readline(), run.stdout.readline()}
    assert ready == {"[0] ready\n", "[1] ready\n"}
    run.send_signal(number)
    said = run.communicate(timeout=100)[0]
    assert run.returncode == 128 + number
    assert said.count("[0] asked") == said.count("[1] asked") == 1


def test_ctrl_c_means_something_before_memjax_listens(start):
    run = start('print("ready", flush=True); import time; time.sleep(60)', "1", "train")
    assert run.stdout.readline() == "[0] ready\n"
    run.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in run.communicate(timeout=100)[0]
    assert run.returncode == 130


def test_one_that_does_not_hear_is_killed_in_the_end(start):
    program = """
import os, signal, subprocess, sys, time
if os.environ["JAX_PROCESS_ID"] == "0":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "60"])
    print("deaf", flush=True)
    child.wait()
sys.stdin.read()
time.sleep(0.5)
sys.exit(4)
"""
    run = start(program, "2", "train", GRACE="1")
    assert "[0] deaf" in run.communicate(timeout=100)[0]
    assert run.returncode == 4


def test_jax_meets_over_it(start):
    run = start(MEET, "2", "train", DEVICES="2")
    said = run.communicate(timeout=100)[0]
    assert run.returncode == 0, said
    assert sorted(re.findall(r"^\[\d\] met .*$", said, re.MULTILINE)) == ["[0] met 4 [1, 2]", "[1] met 4 [1, 2]"]


@pytest.mark.parametrize("args", [(), ("2",), ("0", "train"), ("two", "train")])
def test_a_wrong_command_line_is_explained(start, args):
    run = start("", *args)
    assert "usage: launch/local_multiprocess.sh PROCESSES COMMAND [FLAGS]" in run.communicate(timeout=100)[0]
    assert run.returncode == 2
