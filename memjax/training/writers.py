"""Where a stage's numbers go: a JSON-lines file (what the report reads), TensorBoard, and Weights & Biases if asked."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from memjax.config import Config, to_json
from memjax.sharding import first_process


class Writer(Protocol):
    """Takes the numbers of one step."""

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """`split` is train or validation."""

    def close(self) -> None:
        """Everything is on disk after this."""


class JsonLines:
    """`metrics.jsonl`, one object a line: step, split and the values. Read by the last line of a (step, split)."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        if path.stat().st_size:
            # A kill may have cut the last line short; what comes must not be glued to it.
            self._file.write("\n")

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Appends a line."""
        self._file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        os.fsync(self._file.fileno())
        self._file.close()


class TensorBoard:
    """Event files, by tensorboardX."""

    def __init__(self, folder: Path, first_step: int):
        from tensorboardX import SummaryWriter  # Half a second to import.

        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1, flush_secs=10)

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """One scalar a value, under split/name."""
        for name, value in values.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)

    def close(self) -> None:
        """Flushes."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases (extra `wandb`), one a stage, grouped by the config's name."""

    def __init__(self, config: Config, stage: str, folder: Path):
        import wandb

        settings: Any = json.loads(to_json(config))
        self._run = wandb.init(
            project=config.wandb_project, group=config.name, name=f"{config.name}/{stage}", dir=str(folder), config=settings
        )

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """One log call."""
        self._run.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


def make_writers(config: Config, stage: str, folder: Path, first_step: int) -> list[Writer]:
    """All writers of one stage; none but on the first process."""
    if not first_process():
        return []
    writers: list[Writer] = [JsonLines(folder / "metrics.jsonl"), TensorBoard(folder / "tensorboard", first_step)]
    if config.wandb_project:
        writers.append(WeightsAndBiases(config, stage, folder))
    return writers
