"""What a run left behind, read leniently: a stage that is missing or unfinished reads as such and breaks nothing."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from memjax.report import numbers

CAUSAL_CONTROL, NO_MEMORY = "causal_control", "no_memory"
DEFAULT_CURRICULUM = ("autoencoder", "blank_copy", "copy", "combined")
DEFAULT_CONTROLS = (CAUSAL_CONTROL, NO_MEMORY)
TERMS = ("next_token", "copy", "blank_copy", "reconstruction")


class ReportError(ValueError):
    """A workdir has no results to show; the message names the file."""


Curve = tuple[list[float], list[float]]
"""Steps, ascending, and the values there."""


@dataclasses.dataclass(frozen=True)
class Run:
    """The numbers of one workdir: `results.json` as written and, for every stage, the curves of its `metrics.jsonl`."""

    results: Mapping[str, Any]
    curves: Mapping[str, Mapping[tuple[str, str], Curve]]
    """Stage name to {(split, key): curve}."""
    measured: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Stage name to what `memjax measure` found of it."""
    probed: Mapping[str, Any] | None = None
    """What `memjax probe` wrote to `probe.json` in the workdir."""

    @property
    def curriculum(self) -> tuple[str, ...]:
        """Stages in the order they run."""
        return _names(self.results.get("curriculum"), DEFAULT_CURRICULUM) or DEFAULT_CURRICULUM

    @property
    def controls(self) -> tuple[str, ...]:
        """Stages trained for comparison."""
        return _names(self.results.get("controls"), DEFAULT_CONTROLS)

    @property
    def final(self) -> str:
        """The stage whose model is the run's result."""
        return self.curriculum[-1]

    def section(self, *path: str) -> Mapping[str, Any]:
        """The mapping at `path` of the results; empty when it is absent."""
        node: Any = self.results
        for key in path:
            node = node.get(key) if isinstance(node, Mapping) else None
        return node if isinstance(node, Mapping) else {}

    def headline(self, key: str, control: str = "") -> float | None:
        """A headline figure of the memory model or of a control: the top-level number, else that of the model's own section."""
        top = numbers.number(self.results.get(f"{key}_{control}" if control else key))
        return top if top is not None else self.of_model(control or self.final, key)

    def of_model(self, model: str, key: str) -> float | None:
        """A number measured of the model a stage left."""
        return numbers.number(self.section("models", model).get(key))

    def curve(self, stage: str, split: str, key: str) -> Curve:
        """The curve of `key` ("copy/nats") in one stage; two empty lists when nothing was logged."""
        return self.curves.get(stage, {}).get((split, key), ([], []))

    def last_step(self, stage: str) -> float:
        """The last step logged in a stage; 0 when none was."""
        return max((steps[-1] for steps, _ in self.curves.get(stage, {}).values() if steps), default=0.0)

    def steps(self, stage: str) -> float:
        """Steps the stage took: those of the results, or the last one logged when it has not finished."""
        return numbers.number(self.section("stages", stage).get("steps")) or self.last_step(stage)

    def status(self, stage: str) -> str:
        """`done`, `unfinished` (it logged, but has no result) or `not run`."""
        if self.section("stages", stage):
            return "done"
        return "unfinished" if self.last_step(stage) else "not run"


def read_run(workdir: Path) -> Run:
    """Reads `workdir/results.json`, `probe.json` if there is one, and, of all stages, `metrics.jsonl` and `instruments.json`.

    Raises:
      ReportError: there is no results.json.
      ReportError: results.json is not JSON.
      ReportError: it is JSON, but not an object.
    """
    results = _object(workdir / "results.json", workdir)
    files = sorted((workdir / "stages").glob("*/metrics.jsonl"))
    measured = sorted((workdir / "stages").glob("*/instruments.json"))
    return Run(
        results,
        {file.parent.name: read_curves(file) for file in files},
        {file.parent.name: _object(file, workdir) for file in measured},
        _object(workdir / "probe.json", workdir) if (workdir / "probe.json").exists() else None,
    )


def _object(path: Path, workdir: Path) -> dict[str, Any]:
    """The JSON object in a file that a command writes."""
    if not path.is_file():
        raise ReportError(f"{path} does not exist; `memjax train --workdir={workdir}` writes it when its stages are evaluated")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ReportError(
            f"{path} is not JSON ({error}); delete it and run `memjax train --workdir={workdir}` again"
        ) from error
    if not isinstance(results, dict):
        raise ReportError(f"{path} holds a {type(results).__name__}; a report needs the JSON object that `memjax train` writes")
    return results


def read_curves(path: Path) -> dict[tuple[str, str], Curve]:
    """The curves of one metrics.jsonl. Of lines that repeat a step after a resume, the last wins."""
    values: dict[tuple[str, str], dict[float, float]] = {}
    for record in _records(path):
        step = numbers.number(record.get("step"))
        if step is None:
            continue
        for key, value in record.items():
            value = numbers.number(value)
            if key not in ("step", "split") and value is not None:
                values.setdefault((str(record.get("split", "train")), key), {})[step] = value
    ordered = {name: sorted(by_step.items()) for name, by_step in values.items()}
    return {name: ([step for step, _ in pairs], [value for _, value in pairs]) for name, pairs in ordered.items()}


def _records(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # a run that was killed can leave half a line
        if isinstance(record, dict):
            yield record


def _names(value: Any, default: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value) else default
