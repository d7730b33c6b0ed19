"""Training of one stage: resume, step, watch, save.

On start the weights come from, in this order: the stage's own last whole checkpoint; what `init_from` names; a fresh
initialisation.
"""

import contextlib
import dataclasses
import functools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from memjax.checkpoints import Checkpoints
from memjax.config import REGRESSIONS, WEIGHTINGS, Stage, to_json
from memjax.data import TrainBatches, evaluation_batches, open_attributions
from memjax.models import build
from memjax.objectives import Batch, Term
from memjax.sharding import abstract, batch_sharding, check_rows, put_batch, replicated
from memjax.training.optimizer import learning_rate, make_optimizer, split
from memjax.training.start import Run, abstract_params, check_origin, first_row, fresh_state
from memjax.training.step import Metrics, TrainState, evaluation_step, train_step
from memjax.training.writers import Writer, make_writers

WATCHED_ROWS = 64
"""Held-out rows looked at while training."""


class NonFiniteError(FloatingPointError):
    """A loss became NaN or infinite; the message names step, term and last good checkpoint."""


class Interrupted(Exception):
    """The process was asked to stop and has saved what it had; `signal` is the number it was asked by."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.signal = number


def train_stage(run: Run, name: str) -> dict[str, Any]:
    """Trains the stage to its last step, from where it stands, and returns what its last checkpoint says of it.

    Raises:
      NonFiniteError: a loss was NaN or infinite.
      Interrupted: SIGTERM or SIGINT came; the step it came in is saved.
      CheckpointError: the weights to start from do not fit, or are of another config or tokenizer.
      ConfigError: the batch does not divide over the devices.
    """
    config, stage = run.config, run.config.stages[name]
    check_rows(stage.rows, stage.microbatches, run.mesh, f"config.stages.{name}.rows")
    module = build(config, stage)
    shapes = abstract_params(module, config)
    trainable_shapes, _ = split(shapes, stage.trainable, f"config.stages.{name}.trainable")
    optimizer = make_optimizer(config.optimizer, stage, trainable_shapes)
    saved_shapes = {"opt_state": jax.eval_shape(optimizer.init, trainable_shapes), "step": jax.ShapeDtypeStruct((), jnp.int32)}
    whole = replicated(run.mesh)
    with Checkpoints(run.folder(name) / "checkpoints", config.checkpoints_kept, run.reporter.say) as checkpoints:
        found = checkpoints.restore_latest(abstract(shapes, whole), abstract(saved_shapes, whole))
        if found:
            step, params, saved, meta = found
            check_origin(run, meta, f"{checkpoints.folder}/{step}")
            if step == stage.steps:
                run.reporter.say(f"{name}: all {step} steps are done")
                return meta
            run.reporter.say(f"{name}: going on from step {step}")
            trainable, frozen = split(params, stage.trainable, "trainable")
            state = TrainState(saved["step"], trainable, frozen, saved["opt_state"])
            seconds = float(meta["seconds"])
        else:
            state, seconds = fresh_state(run, name, module, optimizer), 0.0
        stage_run = _StageRun(run, name, stage, module, optimizer, checkpoints, seconds)
        return stage_run.train(state)


@dataclasses.dataclass
class _StageRun:
    """The loop of one stage and what it carries from step to step."""

    run: Run
    name: str
    stage: Stage
    module: nn.Module
    optimizer: optax.GradientTransformation
    checkpoints: Checkpoints
    seconds: float
    """Seconds trained before this process took over."""
    began: float = dataclasses.field(default_factory=time.monotonic)
    logged: tuple[float, int] = (0.0, 0)
    """When numbers were last written, and at which step."""

    def elapsed(self) -> float:
        """Seconds trained so far, over all processes."""
        return self.seconds + time.monotonic() - self.began

    def train(self, state: TrainState) -> dict[str, Any]:
        run, stage, config = self.run, self.stage, self.run.config
        first = int(state.step)
        whole, by_rows = replicated(run.mesh), batch_sharding(run.mesh)
        step_fn = jax.jit(
            functools.partial(
                train_step, module=self.module, stage=stage, optimizer=self.optimizer, ids=run.ids, seed=config.seed
            ),
            in_shardings=(whole, by_rows),
            out_shardings=(whole, whole),
            donate_argnums=0,
        )
        weighed = set(stage.objectives) & {*WEIGHTINGS, *REGRESSIONS}
        attributions = open_attributions(config.data.attributions) if weighed else None
        order = TrainBatches(run.data.train, stage.rows, config.seed, first_row(config, stage), attributions)
        batches = order.from_step(first)
        watch = self._watcher()
        writers = make_writers(config, self.name, run.folder(self.name), first)
        pending: list[tuple[int, Metrics]] = []
        self.logged = (time.monotonic(), first)
        try:
            with run.reporter.bar(self.name, stage.steps, first) as bar, _stop_requests() as stop:
                for step in range(first + 1, stage.steps + 1):
                    state, metrics = step_fn(state, Batch(**put_batch(next(batches), run.mesh)))
                    text = None
                    last = step == stage.steps
                    if step % config.log_every == 0:
                        # The newest step is still being computed: read those before it and do not wait.
                        text = self._log(pending, writers)
                        pending = []
                    pending.append((step, metrics))
                    if step % config.evaluate_every == 0 or last:
                        text = self._log(pending, writers) or text
                        pending = []
                        watch(state, step, writers)
                    stopping = stop.is_set()
                    if step % config.checkpoint_every == 0 or last or stopping:
                        self._log(pending, writers)
                        pending = []
                        self._save(state, step)
                    bar.advance(1, text)
                    if stopping:
                        self.checkpoints.wait()
                        raise Interrupted(
                            f"{self.name}: asked to stop; step {step} is saved, the same command goes on from there",
                            stop.number,
                        )
            self.checkpoints.wait()
        finally:
            for writer in writers:
                writer.close()
        return self._meta(stage.steps)

    def _log(self, pending: list[tuple[int, Metrics]], writers: list[Writer]) -> str | None:
        """Writes the mean over the pending steps, at the last of them; stops the run if one is not finite."""
        if not pending:
            return None
        fetched = [(step, jax.device_get(metrics)) for step, metrics in pending]
        for step, metrics in fetched:
            self._check_finite(step, metrics)
        step, latest = fetched[-1]
        now, (since, since_step) = time.monotonic(), self.logged
        self.logged = (now, step)
        tokens = (step - since_step) * self.stage.rows * self.run.config.data.row_tokens
        values = {"loss": float(sum(m.loss for _, m in fetched) / len(fetched))}
        for name in latest.terms:
            values |= term_values(name, sum_terms([m.terms[name] for _, m in fetched]))
        rest = {
            "learning_rate": float(jnp.asarray(learning_rate(self.stage)(step - 1))),
            "gradient_norm": float(sum(m.gradient_norm for _, m in fetched) / len(fetched)),
            "tokens_per_second": tokens / max(now - since, 1e-9),
            "seconds": self.elapsed(),
        }
        for writer in writers:
            writer.write(step, "train", values | rest)
        return "  ".join(f"{name} {values[f'{name}/nats']:.3f} nats" for name in latest.terms)

    def _check_finite(self, step: int, metrics: Metrics) -> None:
        bad = [name for name, term in metrics.terms.items() if not math.isfinite(float(term.nats))]
        norms = (metrics.gradient_norm, metrics.update_norm)
        if not bad and all(math.isfinite(float(norm)) for norm in norms):
            return
        self.checkpoints.wait()
        good = self.checkpoints.latest()
        where = (
            f"the last good checkpoint is step {good} in {self.checkpoints.folder}"
            if good is not None
            else "there is no checkpoint yet"
        )
        what = f"the {', '.join(bad)} loss" if bad else "the gradient or the update"
        raise NonFiniteError(
            f"stage {self.name}, step {step}: {what} is not finite; {where}. Start again in another --workdir with a lower"
            f" config.stages.{self.name}.learning_rate, a lower config.optimizer.clip_norm or a longer warm-up; init_from can name the"
            " folders of the stages that are done"
        )

    def _watcher(self) -> Callable[[TrainState, int, list[Writer]], None]:
        """A look at a few held-out rows, written as split `validation`."""
        run = self.run
        # Held-out rows have no attributions, so there is nothing to compare an estimate of them with.
        names = tuple(sorted(set(self.stage.objectives) - set(REGRESSIONS)))
        step_fn = jax.jit(functools.partial(evaluation_step, module=self.module, names=names, ids=run.ids, stage=self.stage))
        limit = min(WATCHED_ROWS, len(run.data.validation))
        shards = run.mesh.shape["data"] * run.mesh.shape["fsdp"]
        batch_rows = -(-limit // shards) * shards
        batches = list(evaluation_batches(run.data.validation, batch_rows, limit, run.ids.pad))

        def watch(state: TrainState, step: int, writers: list[Writer]) -> None:
            if not names:
                return
            terms = [jax.device_get(step_fn(state.params, put_batch(batch, run.mesh))) for batch in batches]
            values: dict[str, float] = {}
            for name in names:
                values |= term_values(name, sum_terms([t[name] for t in terms]))
            for writer in writers:
                writer.write(step, "validation", values)

        return watch

    def _meta(self, step: int) -> dict[str, Any]:
        run = self.run
        return {
            "stage": self.name,
            "step": step,
            "config": to_json(run.config),
            "tokenizer": run.data.tokenizer.fingerprint,
            "next_row": first_row(run.config, self.stage) + step * self.stage.rows,
            "seconds": self.elapsed(),
        }

    def _save(self, state: TrainState, step: int) -> None:
        self.checkpoints.save(step, state.params, {"opt_state": state.opt_state, "step": state.step}, self._meta(step))


def sum_terms(terms: list[Term]) -> Term:
    """Adds terms up."""
    return functools.reduce(Term.__add__, terms)


def term_values(name: str, term: Term) -> dict[str, float]:
    """A term as means: nats a token and accuracy."""
    count = max(float(term.count), 1.0)
    return {f"{name}/nats": float(term.nats) / count, f"{name}/accuracy": float(term.correct) / count}


class _Stop(threading.Event):
    """Set when the process is asked to stop."""

    number: int = signal.SIGTERM


@contextlib.contextmanager
def _stop_requests() -> Iterator[_Stop]:
    """An event that SIGTERM and SIGINT set while the block runs; a second signal ends the process at once."""
    event = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in signals}

    def handle(number: int, frame: Any) -> None:
        if event.is_set():
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        event.number = number
        event.set()

    try:
        for number in signals:
            signal.signal(number, handle)
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
