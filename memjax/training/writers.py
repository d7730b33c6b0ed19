"""Outputs of a stage that trains: its numbers, and a trace of the profiler.

Numbers go into a JSON-lines file, which the report reads, into TensorBoard, and into Weights &
Biases where `config.wandb_project` is set.
"""

import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from memjax.config import Config, to_json
from memjax.files import regular, write_text, writing
from memjax.sharding import first_process

FLUSH_SECONDS = 10.0
"""Seconds between two writes of TensorBoard's buffer, about."""
Write = Callable[[int, str, Mapping[str, float]], None]
"""A destination of numbers: a function of the step, train or validation, and numbers by name."""


def json_lines(stack: contextlib.ExitStack, path: Path) -> Write:
    """Write `metrics.jsonl`: one object per line, with step, split and values.

    The last line of a (step, split) counts.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stack.enter_context(writing(path))
    path.touch()
    file = stack.enter_context(regular(path).open("a", encoding="utf-8"))
    stack.callback(os.fsync, file.fileno())
    if path.stat().st_size:
        # A kill may have cut the last line short, and the next one must not continue it.
        file.write("\n")

    def write(step: int, split: str, values: Mapping[str, float]) -> None:
        with writing(path):
            file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
            file.flush()

    return write


def tensorboard(stack: contextlib.ExitStack, folder: Path, first_step: int) -> Write:
    """Write event files by tensorboardX: one scalar per value, as split/name.

    Its `SummaryWriter` would write in a thread, and wait for ever once that has failed.
    """
    # Half a second to import.
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import RecordWriter
    from tensorboardX.summary import scalar

    proto: Any = event_pb2  # Its classes are made when it is imported.
    folder.mkdir(parents=True, exist_ok=True)
    stack.enter_context(writing(folder))
    file = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
    events = RecordWriter(str(folder / file))
    stack.callback(events.close)
    stack.callback(events.flush)

    def add(**values: Any) -> None:
        events.write(proto.Event(wall_time=time.time(), **values).SerializeToString())

    add(file_version="brain.Event:2")
    # TensorBoard hides what an earlier process wrote from this step on.
    add(step=first_step + 1, session_log=proto.SessionLog(status=proto.SessionLog.START))
    flushed = time.monotonic()

    def write(step: int, split: str, values: Mapping[str, float]) -> None:
        nonlocal flushed
        with writing(folder):
            for name, value in values.items():
                add(step=step, summary=scalar(f"{split}/{name}", value))
            if time.monotonic() - flushed > FLUSH_SECONDS:
                events.flush()
                flushed = time.monotonic()

    return write


def weights_and_biases(
    stack: contextlib.ExitStack, config: Config, stage: str, folder: Path
) -> Write:
    """Write a run of Weights & Biases, grouped by the config's name (extra `wandb`).

    A stage that resumes continues its run, whose id is in `folder`.
    """
    import wandb

    known = folder / "wandb-id.txt"
    if not known.exists():
        write_text(known, secrets.token_hex(4))
    settings: Any = json.loads(to_json(config))
    run = wandb.init(
        project=config.wandb_project,
        group=config.name,
        name=f"{config.name}/{stage}",
        id=regular(known).read_text(encoding="utf-8").strip(),
        resume="allow",
        dir=str(folder),
        config=settings,
    )
    stack.callback(run.finish)

    def write(step: int, split: str, values: Mapping[str, float]) -> None:
        run.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    return write


def make_writers(
    stack: contextlib.ExitStack, config: Config, stage: str, folder: Path, first_step: int
) -> list[Write]:
    """Return all writers of a stage in the first process, and none in the others.

    Everything is on disk when `stack` is closed.

    Raises:
      OSError: the disk refuses, here, in a writer or when `stack` is closed.
    """
    if not first_process():
        return []
    writers = [
        json_lines(stack, folder / "metrics.jsonl"),
        tensorboard(stack, folder / "tensorboard", first_step),
    ]
    if config.wandb_project:
        writers.append(weights_and_biases(stack, config, stage, folder))
    return writers


class Trace(contextlib.ExitStack):
    """A profiler trace of some steps of a stage, for TensorBoard or Perfetto.

    Every step is annotated; steps outside the window are not traced. Leaving the block ends a trace
    that is open.

    Args:
      window: first and last step to trace; None traces nothing.
      folder: where the trace is written.
    """

    def __init__(self, window: tuple[int, int] | None, folder: Path):
        super().__init__()
        self._first, self._last = window or (0, 0)
        self._folder = folder
        self._tracing = False

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Annotate a step, and open the trace where the window begins."""
        if not self._tracing and self._first <= step <= self._last:
            self.enter_context(jax.profiler.trace(str(self._folder)))
            self._tracing = True
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            yield

    def stop_after(self, step: int, metrics: Any) -> None:
        """Close the trace where the window ends, when the device has computed its last step."""
        if self._tracing and step >= self._last:
            jax.block_until_ready(metrics)
            self.close()
            self._tracing = False
