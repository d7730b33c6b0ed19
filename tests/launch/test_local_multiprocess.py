"""launch/local_multiprocess.sh, for real: processes, their environment, their ends, and JAX over
two of them."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "local_multiprocess.sh"

MEET = """
import os, jax
number, process = (int(os.environ[f"JAX_{name}"]) for name in ("NUM_PROCESSES", "PROCESS_ID"))
jax.distributed.initialize(num_processes=number, process_id=process)
from jax.experimental.multihost_utils import process_allgather
met = process_allgather(jax.numpy.array(jax.process_index() + 1)).tolist()
print("met", jax.device_count(), met)
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
        'import os, sys; print(sys.argv[1:]); [print(f"{k}={v}") for k, v in'
        ' os.environ.items() if k[:3] in ("JAX", "XLA")]'
    )
    run = start(program, "3", "train", "--a=b c", DEVICES="4", XLA_FLAGS="--given")
    lines = run.communicate(timeout=300)[0].splitlines()
    assert run.returncode == 0
    assert [
        sum(line.startswith(f"[{i}] ['train', '--a=b c']") for line in lines) for i in range(3)
    ] == [1, 1, 1]
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
time.sleep(600)
"""
    run = start(program, "2", "train", UP=str(tmp_path / "up"))
    said = run.communicate(timeout=300)[0]
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
time.sleep(600)
"""
    run = start(program, "2", "train")
    ready = {run.stdout.readline(), run.stdout.readline()}
    assert ready == {"[0] ready\n", "[1] ready\n"}
    run.send_signal(number)
    said = run.communicate(timeout=300)[0]
    assert run.returncode == 128 + number
    assert said.count("[0] asked") == said.count("[1] asked") == 1


def test_a_signal_while_processes_start_ends_all(start, tmp_path):
    slow = tmp_path / "python3"
    slow.write_text(
        f'#!/bin/sh\ncase $3 in */1.up) sleep 1;; esac\nexec {shutil.which("python3")} "$@"\n'
    )
    slow.chmod(0o755)
    program = 'print("ready", flush=True); import time; time.sleep(20); print("stayed")'
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    run = start(program, "2", "train", GRACE="60", PATH=path)
    assert run.stdout.readline() == "[0] ready\n"
    run.send_signal(signal.SIGTERM)
    assert "stayed" not in run.communicate(timeout=300)[0]
    assert run.returncode == 128 + signal.SIGTERM


def test_ctrl_c_means_something_before_memjax_listens(start):
    run = start('print("ready", flush=True); import time; time.sleep(600)', "1", "train")
    assert run.stdout.readline() == "[0] ready\n"
    run.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in run.communicate(timeout=300)[0]
    assert run.returncode == 130


def test_one_that_does_not_hear_is_killed_in_the_end(start, tmp_path):
    program = """
import os, signal, subprocess, sys, time
if os.environ["JAX_PROCESS_ID"] == "0":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen(["sleep", "600"])
    print("deaf", flush=True)
    open(os.environ["UP"], "w")
    child.wait()
while not os.path.exists(os.environ["UP"]):
    time.sleep(0.01)
sys.exit(4)
"""
    run = start(program, "2", "train", GRACE="1", UP=str(tmp_path / "up"))
    assert "[0] deaf" in run.communicate(timeout=300)[0]
    assert run.returncode == 4


@pytest.mark.slow
def test_jax_meets_over_it(start):
    run = start(MEET, "2", "train", DEVICES="2")
    said = run.communicate(timeout=300)[0]
    assert run.returncode == 0, said
    assert sorted(re.findall(r"^\[\d\] met .*$", said, re.MULTILINE)) == [
        "[0] met 4 [1, 2]",
        "[1] met 4 [1, 2]",
    ]


def test_lines_are_whole_whatever_writes_them_in_parts(start):
    """As C++ writes to standard error, while Python writes to standard output."""
    program = """
import os
for line in range(50):
    for part in (b"C++ says ", b"in parts ", b"what it says\\n"):
        os.write(2, part)
        os.write(1, b"x" * 5000 + b"\\n")
os.write(1, b"the last, without an end")
"""
    said = start(program, "2", "train").communicate(timeout=300)[0].splitlines()
    for i in range(2):
        assert said.count(f"[{i}] C++ says in parts what it says") == 50
        assert said.count(f"[{i}] {'x' * 5000}") == 150
        assert said.count(f"[{i}] the last, without an end") == 1
    assert len(said) == 2 * 201


def test_with_sigint_ignored_sigterm_alone_ends_it(start):
    """As in `nohup make test &`: a shell's background jobs ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run = start('print("ready", flush=True); import time; time.sleep(600)', "1", "train")
    finally:
        signal.signal(signal.SIGINT, before)
    assert run.stdout.readline() == "[0] ready\n"
    run.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        run.wait(0.5)
    run.send_signal(signal.SIGTERM)
    assert "KeyboardInterrupt" not in run.communicate(timeout=300)[0]
    assert run.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("args", [(), ("2",), ("0", "train"), ("two", "train")])
def test_a_wrong_command_line_is_explained(start, args):
    run = start("", *args)
    assert (
        "usage: launch/local_multiprocess.sh PROCESSES COMMAND [FLAGS]"
        in run.communicate(timeout=300)[0]
    )
    assert run.returncode == 2
