"""Children of one process that has imported everything, and a run whose files they write."""

import contextlib
import dataclasses
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from memjax.config import Optimizer
from memjax.testing import tiny_config, write_config, write_corpus

HANG = 120
"""Seconds after which a child counts as hanging."""


class Ended(NamedTuple):
    """How a child ended."""

    status: int
    answers: list[dict[str, Any]]
    """Of the commands that ended."""
    said: str
    """All that was printed."""


class Forks:
    """The process of forks.py."""

    def __init__(self, folder: Path):
        self._files = {"out": folder / "out", "said": folder / "said"}
        cache = {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forks.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=os.environ | cache,
        )

    def run(
        self, *commands: list[str], kill_after: float = HANG, env: dict[str, str] | None = None
    ) -> Ended:
        """Runs commands in a child, which is killed after so many seconds."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None and stdout is not None
        files = {name: str(path) for name, path in self._files.items()}
        for path in self._files.values():
            path.write_text("")
        stdin.write(json.dumps({"commands": commands, "env": env or {}, **files}).encode() + b"\n")
        pid = int(stdout.readline())
        if not select.select([stdout], [], [], kill_after)[0]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        status = int(stdout.readline())
        said = self._files["said"].read_text(errors="replace")
        lines = self._files["out"].read_text().splitlines()
        return Ended(status, [json.loads(line) for line in lines], said)


class Place(NamedTuple):
    """A run, and where it is written."""

    forks: Forks
    train: list[str]
    """The command."""
    workdir: Path
    end: dict[str, Any]
    """What it ends with, undisturbed."""
    seconds: float
    """How long it took."""

    @property
    def undisturbed(self) -> Path:
        """A finished one."""
        return self.workdir.with_name("undisturbed")


@pytest.fixture(scope="module")
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """A run of two stages, the second from the weights of the first, with those of the usual
    EVALUATORS that the module names; `undisturbed` is a finished one."""
    folder = tmp_path_factory.mktemp("place")
    config = tiny_config(
        write_corpus(folder / "corpus.jsonl", documents=30), optimizer=Optimizer(), controls=()
    )
    first = config.stages["autoencoder"]
    stages = {"first": first, "second": dataclasses.replace(first, init_from="first")}
    evaluators = {name: config.evaluators[name] for name in request.module.EVALUATORS}
    config = dataclasses.replace(
        config, stages=stages, curriculum=tuple(stages), evaluators=evaluators
    )
    workdir = folder / "run"
    train = [
        "train",
        f"--config={write_config(folder / 'tiny.py', config)}",
        f"--workdir={workdir}",
    ]
    forks = Forks(folder)
    for _ in range(2):  # Programs are compiled by the first.
        began = time.monotonic()
        done = forks.run(train, ["end", str(workdir)])
        seconds = time.monotonic() - began
        assert [answer["status"] for answer in done.answers] == [0, 0], done.said
        shutil.rmtree(folder / "undisturbed", ignore_errors=True)
        workdir.rename(folder / "undisturbed")
    with forks.process:
        yield Place(forks, train, workdir, done.answers[1]["value"], seconds)
