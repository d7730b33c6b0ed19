"""Read the results of a run for the report.

Reading is lenient: missing or unfinished stages do not fail.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from memjax.errors import MemjaxError
from memjax.evaluation import numbers
from memjax.evaluation.instruments import suite
from memjax.evaluation.instruments.tables import probe_table
from memjax.files import JSON_LIMIT, check_seal, parse_json, read_json, regular, sha256

_LOG = logging.getLogger("memjax")
CAUSAL_CONTROL, NO_MEMORY = "causal_control", "no_memory"
DEFAULT_CURRICULUM = ("autoencoder", "blank_copy", "copy", "combined")
DEFAULT_CONTROLS = (CAUSAL_CONTROL, NO_MEMORY)
TERMS = ("next_token", "recall", "blank_recall", "copy", "blank_copy", "reconstruction")


class ReportError(MemjaxError):
    """A workdir has no results to show; the message names the file."""


_RESULTS = {"models": dict, "stages": dict, "metrics_sha256?": {str: str}}
"""The shape of results.json."""
_MEASURED = {
    **dict.fromkeys(("step", "texts", "tokens_a_text"), int),
    "stage": str,
    "instruments": dict,
}
"""The shape of what `memjax measure` writes."""
Curve = tuple[list[float], list[float]]
"""Steps, ascending, and the values there."""


@dataclasses.dataclass(frozen=True)
class Run:
    """The numbers of one workdir.

    They are `results.json` as written and, for every stage, the curves of its `metrics.jsonl`.
    """

    results: Mapping[str, Any]
    curves: Mapping[str, Mapping[tuple[str, str], Curve]]
    """Stage name to {(split, key): curve}."""
    measured: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Stage name to the results of `memjax measure`."""
    probed: Mapping[str, Any] | None = None
    """Results of `memjax probe`, from `probe.json` in the workdir."""

    @property
    def curriculum(self) -> tuple[str, ...]:
        """Return the stages in the order in which they run."""
        return _names(self.results.get("curriculum"), DEFAULT_CURRICULUM) or DEFAULT_CURRICULUM

    @property
    def controls(self) -> tuple[str, ...]:
        """Return the stages trained for comparison."""
        return _names(self.results.get("controls"), DEFAULT_CONTROLS)

    @property
    def final(self) -> str:
        """Return the stage whose model is the run's result."""
        return self.curriculum[-1]

    def section(self, *path: str) -> Mapping[str, Any]:
        """Return the mapping at `path` of the results; empty if it is absent."""
        node: Any = self.results
        for key in path:
            node = node.get(key) if isinstance(node, Mapping) else None
        return node if isinstance(node, Mapping) else {}

    def headline(self, key: str, control: str = "") -> float | None:
        """Return a headline number of the memory model or of a control.

        The top-level number has priority over that in the model's own section.
        """
        top = numbers.number(self.results.get(f"{key}_{control}" if control else key))
        return top if top is not None else self.of_model(control or self.final, key)

    def of_model(self, model: str, key: str) -> float | None:
        """Return a measured number of the model that a stage trained."""
        return numbers.number(self.section("models", model).get(key))

    def curve(self, stage: str, split: str, key: str) -> Curve:
        """Return the curve of `key` ("copy/nats") in a stage; two empty lists if there is none."""
        return self.curves.get(stage, {}).get((split, key), ([], []))

    def last_step(self, stage: str) -> float:
        """Return the last logged step of a stage; 0 if there is none."""
        return max(
            (steps[-1] for steps, _ in self.curves.get(stage, {}).values() if steps), default=0.0
        )

    def steps(self, stage: str) -> float:
        """Return the steps of a stage: those in the results, else the last logged one."""
        return numbers.number(self.section("stages", stage).get("steps")) or self.last_step(stage)

    def status(self, stage: str) -> str:
        """Return `done`, `unfinished` (logged, but without results) or `not run`."""
        if self.section("stages", stage):
            return "done"
        return "unfinished" if self.last_step(stage) else "not run"


def read_run(workdir: Path) -> Run:
    """Read `workdir/results.json`, and other results of the run if they exist.

    These are `probe.json` and, for every stage, `metrics.jsonl` and `instruments.json`.

    Raises:
      ReportError: there is no results.json, or a file is no JSON object.
    """
    path = workdir / "results.json"
    again = f"`memjax train --workdir={workdir}`"
    ReportError.require(
        path.exists(), f"{path}: does not exist; {again} writes it after evaluating its stages"
    )
    results = _object(path, again, _RESULTS)
    files = sorted((workdir / "stages").glob("*/metrics.jsonl"))
    for name, expected in results.get("metrics_sha256", {}).items():
        file = workdir / "stages" / name / "metrics.jsonl"
        if file not in files or sha256(file) != expected:
            _LOG.warning("%s: not what was written; curves on the page lack or change points", file)
    measured = sorted((workdir / "stages").glob(f"*/{suite.FILE}"))
    probed = workdir / "probe.json"
    return Run(
        results,
        {file.parent.name: read_curves(file) for file in files},
        {
            file.parent.name: _object(file, "`memjax measure`", _MEASURED, suite.tables_of)
            for file in measured
        },
        _object(probed, "`memjax probe`", dict, probe_table) if probed.exists() else None,
    )


def _object(
    path: Path, command: str, shape: Any, show: Callable[[dict[str, Any]], Any] = dict
) -> dict[str, Any]:
    """Read the JSON object in a file that a command writes, and that `show` can show."""
    remedy = f"Delete it and repeat {command}"
    found = read_json(path, ReportError, shape, remedy)
    check_seal(found, path, remedy, ReportError)
    try:
        show(found)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ReportError(
            f"{path}: {type(error).__name__} ({error}), expected what {command} writes. {remedy}"
        ) from error
    return found


def read_curves(path: Path) -> dict[tuple[str, str], Curve]:
    """Return the curves of one metrics.jsonl.

    If a step is repeated after a resume, the last line has priority.
    """
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
    return {
        name: ([step for step, _ in pairs], [value for _, value in pairs])
        for name, pairs in ordered.items()
    }


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with regular(path).open(encoding="utf-8", errors="replace") as lines:
        while line := lines.readline(JSON_LIMIT):
            with contextlib.suppress(ReportError):  # A killed run can leave a partial line.
                yield parse_json(line, path, ReportError)


def _names(value: Any, default: tuple[str, ...]) -> tuple[str, ...]:
    return (
        tuple(value)
        if isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)
        else default
    )
