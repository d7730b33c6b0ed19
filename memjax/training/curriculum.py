"""A whole run: data, the stages of the curriculum, the controls, the evaluation and the page."""

import time
from pathlib import Path
from typing import Any

from rich.table import Table

from memjax.config import Config, differences, from_json, to_json
from memjax.data import prepare
from memjax.report import write_report
from memjax.training.evaluate import evaluate_run, write_results
from memjax.training.loop import Run, train_stage
from memjax.training.progress import Reporter


class WorkdirError(ValueError):
    """The workdir belongs to another run; the message names what differs."""


def run_experiment(config: Config, workdir: Path, reporter: Reporter | None = None) -> dict[str, Any]:
    """Does whatever of the run is not done yet and returns its results.

    Writes `config.json`, `data/`, `stages/NAME/` (checkpoints, metrics), `results.json`, `plots/` and `report.html` in
    `workdir`. Called again, it goes on where it stopped, with the same batches and bitwise the same weights.

    Raises:
      WorkdirError: the workdir was made with another config.
      CorpusError, TokenizerError, RowsError: the data cannot be made or is damaged.
      CheckpointError, NonFiniteError, Interrupted: as `train_stage`.
    """
    began = time.monotonic()
    reporter = reporter or Reporter()
    workdir = Path(workdir).absolute()
    claim_workdir(config, workdir)
    data = prepare(config.data, workdir / "data", reporter.say)
    run = Run(config, workdir, data, reporter)
    began -= _seconds_before(workdir)
    stages = {}
    try:
        for name in config.curriculum + config.controls:
            stages[name] = train_stage(run, name)
            _note_seconds(workdir, began)
        results = evaluate_run(run, stages)
    finally:
        seconds = _note_seconds(workdir, began)
    results = {"seconds_total": seconds} | results
    write_results(results, workdir / "results.json")
    page = write_report(workdir)
    _summarise(results, reporter)
    reporter.say(f"results in {workdir / 'results.json'}, the page in {page}")
    return results


def claim_workdir(config: Config, workdir: Path) -> None:
    """Writes the resolved config into a new workdir, or checks that an old one is of the same config.

    Raises:
      WorkdirError: it is not.
    """
    path = workdir / "config.json"
    if path.exists():
        try:
            theirs = from_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise WorkdirError(f"{path} cannot be read ({error}); use another --workdir") from error
        changed = differences(config, theirs)
        if changed:
            more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
            raise WorkdirError(
                f"{workdir} is the workdir of another config: config.{'; config.'.join(changed[:3])}{more}. Use another --workdir, or set the"
                " keys back to go on with this one"
            )
    elif (workdir / "stages").exists():
        raise WorkdirError(f"{workdir} holds stages but no config.json; use another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(to_json(config), encoding="utf-8")
    temporary.replace(path)


def _seconds_before(workdir: Path) -> float:
    """Seconds that earlier calls on this workdir took, as far as they could write it down."""
    path = workdir / "seconds"
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return 0.0


def _note_seconds(workdir: Path, began: float) -> float:
    """Writes down, for a later call, the seconds since `began`, and returns them."""
    seconds = time.monotonic() - began
    (workdir / "seconds").write_text(f"{seconds:.1f}\n")
    return seconds


def _summarise(results: dict[str, Any], reporter: Reporter) -> None:
    def show(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    table = Table(
        title=f"{results['name']}: held-out text",
        caption="next token: nats a token; copy: accuracy, teacher-forced; recall: chunks exact from memories alone",
    )
    for column in ("model", "next token", "bits/byte", "copy", "recall", "autoencoder"):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for name, model in results["models"].items():
        table.add_row(
            name,
            show(model.get("next_token_nats"), ".3f"),
            show(model.get("next_token_bits_per_byte"), ".3f"),
            show(model.get("copy_accuracy"), ".1%"),
            show(model.get("free_running_exact_chunks"), ".1%"),
            show(model.get("autoencoder_accuracy"), ".1%"),
        )
    reporter.console.print(table)
    reporter.say(f"{results['seconds_total']:.0f} s in all, {results['tokens_per_second']:.0f} tokens/s in training")
