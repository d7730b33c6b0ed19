"""A whole run: data, the stages of the curriculum, the controls, the evaluation and the page."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from memjax.config import Config, differences, from_json, to_json
from memjax.data import Prepared, check_attributions, open_attributions, open_memories, prepare
from memjax.report import write_report
from memjax.sharding import Watch, barrier, first_process, make_mesh, require_equal
from memjax.training.evaluate import evaluate_run, write_results
from memjax.training.loop import train_stage
from memjax.training.preflight import check_stages
from memjax.training.progress import Reporter
from memjax.training.start import Run


class WorkdirError(ValueError):
    """The workdir belongs to another run; the message names what differs."""


def run_experiment(config: Config, workdir: str | os.PathLike, reporter: Reporter | None = None) -> dict[str, Any]:
    """Does whatever of the run is not done yet and returns its results.

    Writes `config.json`, `data/`, `stages/NAME/` (checkpoints, metrics), `results.json`, `plots/` and `report.html` in
    `workdir`. Called again, it goes on where it stopped, with the same batches and bitwise the same weights.

    Several processes (`memjax.sharding.connect`) are one run: all call this, with a workdir that all see. Of a workdir gs://BUCKET/FOLDER
    only checkpoints are kept there; the rest lies in ./BUCKET/FOLDER of every machine.

    Raises:
      WorkdirError: the workdir was made with another config, or another process uses it.
      ConfigError: a stage cannot be built, or its batch does not divide over the devices.
      CorpusError, TokenizerError, RowsError: the data cannot be made or is damaged.
      ProcessesError: processes have other settings or other data.
      CheckpointError, NonFiniteError, Interrupted: as `train_stage`.
    """
    began = time.monotonic()
    reporter = reporter or Reporter()
    say = reporter.say
    if not first_process():
        reporter = reporter.silenced()
    remote = str(workdir) if "://" in str(workdir) else ""
    workdir = Path(remote.partition("://")[2] or workdir).absolute()
    with Watch(say) as watch:
        require_equal(to_json(config), "the config")
        check_workdir(config, workdir)
        check_stages(config, make_mesh(config.mesh))
        with _only_one(workdir) if first_process() else contextlib.nullcontext():
            barrier("workdir")
            data = _prepare(config, workdir / "data", reporter)
            if first_process():
                claim_workdir(config, workdir)
            barrier("claimed")
            return _run(Run(config, workdir, data, reporter, watch, remote), began)


def _prepare(config: Config, folder: Path, reporter: Reporter) -> Prepared:
    """The data, made by the first process; where the others do not see its folder, each makes its own."""
    if not first_process():
        barrier("prepared")
    data = prepare(config.data, folder, reporter.say, bar=reporter.bar)
    if first_process():
        barrier("prepared")
    require_equal(json.dumps([data.train.info["files"], data.validation.info["files"]]), "the data (files of rows)")
    if config.data.attributions:
        check_attributions(open_attributions(config.data.attributions), data.train)
    if config.data.memories:
        open_memories(config.data.memories, "train").check_rows(data.train)
    return data


def _run(run: Run, began: float) -> dict[str, Any]:
    """Stages, evaluation and page of a run whose data is there."""
    config, workdir, reporter = run.config, run.workdir, run.reporter
    done = (workdir / "results.json").exists()
    before = _seconds_before(workdir)
    began -= before
    stages = {}
    for name in config.curriculum + config.controls:
        stages[name] = train_stage(run, name)
        if not done and first_process():
            _note_seconds(workdir, began)
    results = evaluate_run(run, stages)
    if first_process():
        # Looking again at a run that is done adds nothing to what it took.
        results = {"seconds_total": before if done else _note_seconds(workdir, began)} | results
        write_results(results, workdir / "results.json")
        page = write_report(workdir)
        _summarise(results, reporter)
        reporter.say(f"results in {workdir / 'results.json'}, the page in {page}")
    barrier("reported")
    return results


def check_workdir(config: Config, workdir: Path) -> None:
    """Raises WorkdirError if `workdir` belongs to a run of another config."""
    path = workdir / "config.json"
    if workdir.exists() and not workdir.is_dir():
        raise WorkdirError(f"--workdir={workdir} is a file; give a folder")
    if not path.exists():
        if (workdir / "stages").exists():
            raise WorkdirError(f"{workdir} holds stages but no config.json; use another --workdir")
        return
    try:
        theirs = from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WorkdirError(f"{path} cannot be read ({error}); use another --workdir") from error
    changed = differences(config, theirs)
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise WorkdirError(
            f"{workdir} is the workdir of another config: config.{'; config.'.join(changed[:3])}{more}. Use another --workdir,"
            " or set the keys back to go on with this one"
        )


def claim_workdir(config: Config, workdir: Path) -> None:
    """Writes the resolved config into the workdir, whole or not at all.

    Raises:
      WorkdirError: it belongs to a run of another config.
    """
    check_workdir(config, workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    temporary = workdir / "config.json.tmp"
    temporary.write_text(to_json(config), encoding="utf-8")
    temporary.replace(workdir / "config.json")


@contextlib.contextmanager
def _only_one(workdir: Path) -> Iterator[None]:
    """Makes the workdir and holds its lock; the system lets go of it when the process ends, however it ends."""
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / ".lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise WorkdirError(
                f"{workdir} is in use by another memjax process; wait for it or use another --workdir"
            ) from error
        yield


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
    reporter.say(
        f"{results['seconds_total']:.0f} s in all, {results['tokens_per_second']:.0f} tokens/s over all stages, compilation included"
    )
