"""Numbers of a stage on disk: what is written, and that a disk that refuses ends the run."""

import contextlib
import errno
import os
import resource
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto import event_pb2

from memjax.testing import tiny_config
from memjax.training import writers
from memjax.training.writers import json_lines, make_writers, tensorboard


def read_events(folder: Path) -> list[Any]:
    """The events of the only file in a folder."""
    (file,) = folder.iterdir()
    raw, found = file.read_bytes(), []
    while raw:
        size = int.from_bytes(raw[:8], "little")
        found.append(event_pb2.Event.FromString(raw[12 : 12 + size]))
        raw = raw[16 + size :]
    return found


def test_event_files_hold_every_value_and_hide_what_is_repeated(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        write = tensorboard(stack, tmp_path, 2)
        for step in (3, 4):
            write(step, "train", {"loss": step / 2, "copy/nats": 0.5})
    version, start, *values = read_events(tmp_path)
    assert version.file_version == "brain.Event:2" and "tfevents" in next(tmp_path.iterdir()).name
    assert (start.step, start.session_log.status) == (3, event_pb2.SessionLog.START)
    said = [(x.step, y.tag, y.simple_value) for x in values for y in x.summary.value]
    assert said == [
        (3, "train/loss", 1.5),
        (3, "train/copy/nats", 0.5),
        (4, "train/loss", 2.0),
        (4, "train/copy/nats", 0.5),
    ]


def test_what_is_no_file_is_no_log(tmp_path: Path, put_no_file: Any) -> None:
    path = put_no_file(tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match=r"not a file|Is a directory") as caught:
        json_lines(contextlib.ExitStack(), path)
    assert caught.value.filename == str(path)


def test_events_are_flushed_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "FLUSH_SECONDS", -1.0)
    with contextlib.ExitStack() as stack:
        write = tensorboard(stack, tmp_path, 0)
        (file,) = tmp_path.iterdir()
        sizes = []
        for step in (1, 2):
            write(step, "train", {"loss": 1.0})
            sizes.append(file.stat().st_size)
    assert 0 < sizes[0] < sizes[1] == file.stat().st_size


@pytest.fixture
def small_files() -> Any:
    """Files have 5,000 bytes at most, as on a full disk."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limit[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)


@pytest.mark.parametrize("make", [json_lines, tensorboard])
def test_a_full_disk_is_an_error_that_names_the_file(
    tmp_path: Path, make: Any, small_files
) -> None:
    path, more = tmp_path / "numbers", (() if make is json_lines else (0,))

    def run() -> None:
        with contextlib.ExitStack() as stack:
            write = make(stack, path, *more)
            for step in range(1000):
                write(step, "train", {f"value{i}": 0.5 for i in range(20)})

    with pytest.raises(OSError, match=f"File too large: '{path}'") as caught:
        run()
    assert caught.value.errno == errno.EFBIG


@pytest.mark.parametrize("make", [json_lines, tensorboard])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_refuses_to_flush_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any, number: int
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    def run() -> None:
        with contextlib.ExitStack() as stack:
            write = make(stack, tmp_path / "numbers", *(() if make is json_lines else (0,)))
            write(1, "train", {"loss": 0.5})

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match=f"{os.strerror(number)}: '{tmp_path}/numbers'"):
        run()


def test_a_stage_that_resumes_continues_its_run_of_weights_and_biases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[dict[str, Any]] = []

    def init(**settings: Any) -> Any:
        started.append(settings)
        return types.SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    config = tiny_config("corpus.jsonl", wandb_project="memories")
    for stage, first in (("copy", 0), ("copy", 4), ("copy", 6), ("other", 0)):
        with contextlib.ExitStack() as stack:
            for write in make_writers(stack, config, stage, tmp_path / stage, first):
                write(first + 1, "train", {"loss": 0.5})
    ids = [settings["id"] for settings in started]
    assert len(set(ids[:3])) == 1 and ids[3] != ids[0] and all(ids)
    assert {settings["resume"] for settings in started} == {"allow"}
