"""A whole run: data, the stages of the curriculum, the controls, the evaluation and the report."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from etils import epath

from memjax.checkpoints.reading import absolute
from memjax.config import Config, differences, to_json
from memjax.data import (
    Prepared,
    check_attributions,
    open_attributions,
    open_memories,
    prepare,
)
from memjax.data.prepare import check_sources
from memjax.data.tfds_rows import holds_rows
from memjax.errors import MemjaxError
from memjax.evaluation import numbers
from memjax.evaluation.evaluators import open_evaluators
from memjax.experiment.evaluate import evaluate_run
from memjax.experiment.preflight import check_stages, check_targets
from memjax.experiment.report import write_report
from memjax.experiment.report.run import read_run
from memjax.files import (
    check_bucket,
    is_remote,
    locked,
    on_this_machine,
    read_json,
    regular,
    remove_temporary,
    sealed,
    sha256,
    write_json,
    write_text,
    writing,
)
from memjax.objectives import load_config
from memjax.progress import SILENT, Reporter
from memjax.sharding import ProcessMonitor, barrier, first_process, make_mesh, require_equal
from memjax.training.compilation_cache import programs_kept
from memjax.training.init_state import Run
from memjax.training.loop import train_stage
from memjax.training.status import EVALUATION, Status


class WorkdirError(MemjaxError):
    """The workdir belongs to another run; the message names the settings that differ."""


def run_experiment(
    config: Config,
    workdir: str | os.PathLike,
    reporter: Reporter | None = None,
    profile: tuple[int, int] | None = None,
    compilation_cache: bool = False,
) -> dict[str, Any]:
    """Train and evaluate a config, from where it stopped, and return its results.

    Writes `config.json`, `data/`, `stages/NAME/` (checkpoints, metrics), `status.json`,
    `results.json`, `plots/` and `report.html` in `workdir`. Called again, it resumes with the same
    batches and bitwise the same weights.

    Several processes (`memjax.sharding.connect`) are one run: all call this, with a workdir that
    all of them can read. A workdir gs://BUCKET/FOLDER keeps checkpoints and `status.json` in the
    bucket, and the rest in ./BUCKET/FOLDER of every machine.

    Args:
      config: the run.
      workdir: its folder.
      reporter: prints progress.
      profile: first and last step of every stage to trace with the profiler, into
        `stages/NAME/profile`; None traces nothing.
      compilation_cache: keep compiled programs in the workdir or bucket, for quick restarts.

    Raises:
      WorkdirError: the workdir was made with another config, or another process uses it.
      ConfigError: a stage cannot be built, or its batch does not divide over the devices.
      CorpusError, TokenizerError, RowsError: the data cannot be made or is damaged.
      ProcessesError: processes have other settings or other data.
      CheckpointError, NonFiniteError, Preempted: as `train_stage`.
    """
    began = time.monotonic()
    reporter = reporter or Reporter()
    log = reporter.log
    if not first_process():
        reporter = SILENT
    remote = str(absolute(workdir)) if is_remote(workdir) else ""
    workdir = on_this_machine(remote or workdir).absolute()
    place = epath.Path(remote or workdir)
    if remote and first_process():
        check_bucket(remote)
    status = Status(place, log)
    # Parameters and draws are of 32 bits.
    with jax.enable_x64(False), ProcessMonitor(log, ended=status.cut_off) as watch:
        require_equal(to_json(config), "the config")
        check_workdir(config, workdir, reporter.log)
        check_stages(config, make_mesh(config.mesh))
        if not (holds_rows(config.data.corpus) or (workdir / "data" / "prepared.json").exists()):
            check_sources(config.data)
        with _only_one(workdir) if first_process() else contextlib.nullcontext(), status:
            barrier("workdir")
            data = prepare_together(config, workdir / "data", reporter)
            if first_process():
                claim_workdir(config, workdir)
            barrier("claimed")
            run = Run(config, workdir, data, reporter, watch, remote, profile, status)
            with programs_kept(place) if compilation_cache else contextlib.nullcontext():
                return _run(run, began)


def prepare_together(config: Config, folder: Path, reporter: Reporter) -> Prepared:
    """Prepare the data in the first process, or in all where they do not share its folder.

    Args:
      config: the run.
      folder: where the data are prepared.
      reporter: prints progress.

    Raises:
      ConfigError: an objective has no target in padded rows.
      CorpusError, TokenizerError, RowsError: the data cannot be made or is damaged.
      ProcessesError: processes have other data.
    """
    if not first_process():
        barrier("prepared")
    with reporter.active():
        data = prepare(config.data, folder, reporter.log)
    if first_process():
        barrier("prepared")
    require_equal(
        json.dumps([data.train.info["files"], data.validation.info["files"]]),
        "the data (files of rows)",
    )
    if config.data.attributions:
        check_attributions(open_attributions(config.data.attributions), data.train)
    if config.data.memories and config.data.memories not in config.stages:
        open_memories(config.data.memories, "train").check_rows(data.train)
    check_targets(config, data)
    return data


def _run(run: Run, began: float) -> dict[str, Any]:
    """Train, evaluate and report a run whose data are prepared."""
    config, workdir, reporter = run.config, run.workdir, run.reporter
    done = (workdir / "results.json").exists()
    if done and first_process():
        with contextlib.suppress(MemjaxError):
            read_run(workdir)  # Names damaged logs, whose checksums are written again.
    if first_process():
        remove_temporary(workdir)
    before = _seconds_before(workdir)
    began -= before
    stages = {}
    for name in config.curriculum + config.controls:
        evaluators = open_evaluators(run, name, training=True)
        stages[name] = train_stage(run, name, evaluators)
        if not done and first_process():
            _note_seconds(workdir, began)
    run.status.doing("evaluating")
    with run.status.timing(EVALUATION):
        results = evaluate_run(run, stages)
    if first_process():
        # A run that is evaluated again took no longer than before.
        results = {"seconds_total": before if done else _note_seconds(workdir, began)} | results
        logged = sorted(workdir.glob("stages/*/metrics.jsonl"))
        results["metrics_sha256"] = {path.parent.name: sha256(path) for path in logged}
        write_json(workdir / "results.json", sealed(results))
        with writing(workdir):
            page = write_report(workdir)
        _summarise(results, reporter)
        reporter.log(f"results in {workdir / 'results.json'}, the report in {page}")
    barrier("reported")
    return results


def check_workdir(
    config: Config, workdir: Path, log: Callable[[str], None] = lambda _: None
) -> None:
    """Check that `workdir` does not belong to a run of another config.

    Args:
      config: the run.
      workdir: its folder.
      log: called with the settings that differ and may do so.

    Raises:
      WorkdirError: it does.
    """
    path = workdir / "config.json"
    WorkdirError.require(
        workdir.is_dir() or not workdir.exists(),
        f"--workdir={workdir} is a file; give a folder",
    )
    if not path.exists():
        WorkdirError.require(
            not (workdir / "stages").exists(),
            f"{workdir} holds stages but no config.json; use another --workdir",
        )
        return
    try:
        theirs = load_config(read_json(path, WorkdirError))
    except MemjaxError as error:
        raise WorkdirError(f"{path} cannot be read ({error}); use another --workdir") from error
    changed = differences(config, theirs)
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise WorkdirError(
            f"{workdir} is the workdir of another config:"
            f" config.{'; config.'.join(changed[:3])}{more}. Use another --workdir,"
            " or set the keys back to resume this run"
        )
    if changed := differences(config, theirs, unchecked=True):
        log(f"{workdir}: resuming with other settings: config.{'; config.'.join(changed)}")


def claim_workdir(config: Config, workdir: Path) -> None:
    """Write the resolved config into the workdir.

    Raises:
      WorkdirError: it belongs to a run of another config.
    """
    check_workdir(config, workdir)
    write_text(workdir / "config.json", to_json(config))


@contextlib.contextmanager
def _only_one(workdir: Path) -> Iterator[None]:
    """Make the workdir and hold its lock; the system frees it when the process ends."""

    def busy() -> None:
        raise WorkdirError(
            f"{workdir}: in use by another memjax process. Wait for it or use another --workdir"
        )

    with locked(workdir / ".lock", busy):
        yield


def _seconds_before(workdir: Path) -> float:
    """Return the seconds that earlier calls on this workdir took and noted."""
    with contextlib.suppress(OSError, ValueError):
        return float(regular(workdir / "seconds").read_text())
    return 0.0


def _note_seconds(workdir: Path, began: float) -> float:
    """Write the seconds since `began` for a later call, and return them."""
    seconds = time.monotonic() - began
    write_text(workdir / "seconds", f"{seconds:.1f}\n")
    return seconds


def _summarise(results: dict[str, Any], reporter: Reporter) -> None:
    reporter.table(
        f"{results['name']}: held-out text",
        ("model", "next token", "bits/byte", "copy", "recall", "autoencoder"),
        [
            (
                name,
                numbers.decimal(model.get("next_token_nats"), 3),
                numbers.decimal(model.get("next_token_bits_per_byte"), 3),
                numbers.percent(model.get("copy_accuracy")),
                numbers.percent(model.get("free_running_exact_chunks")),
                numbers.percent(model.get("autoencoder_accuracy")),
            )
            for name, model in results["models"].items()
        ],
        "next token: nats per token; copy: accuracy, teacher-forced; recall: chunks reconstructed"
        " exactly from memories alone",
    )
    reporter.log(
        f"{results['seconds_total']:.0f} s in total, {results['tokens_per_second']:.0f} tokens/s"
        " over all stages, compilation included"
    )
