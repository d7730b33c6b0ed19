"""Training of one stage: resume, step, watch, save.

On start the weights come from, in this order: the stage's own last whole checkpoint; what `init_from` names; a fresh
initialisation.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from memjax.checkpoints import Checkpoints, Schedule
from memjax.config import REGRESSIONS, WEIGHTINGS, Stage, to_json
from memjax.data import Memories, TrainBatches, evaluation_batches, open_attributions
from memjax.models import build
from memjax.objectives import Batch, Term
from memjax.sharding import agreed, batch_shards, check_rows, local_rows, put_batch
from memjax.training.encode_corpus import stored_memories
from memjax.training.jitted import abstract_state, jit_evaluation_step, jit_train_step
from memjax.training.optimizer import learning_rate, make_optimizer, split
from memjax.training.placement import say_placement
from memjax.training.pretrained import EMPTY, without_memory
from memjax.training.start import Run, abstract_params, check_origin, first_row, fresh_state
from memjax.training.step import Metrics, TrainState
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
      MemoriesError: stored memories are of other rows or of another encoder.
      ConfigError: the batch does not divide over the devices.
    """
    config, stage = run.config, run.config.stages[name]
    check_rows(stage.rows, stage.microbatches, run.mesh, f"config.stages.{name}.rows")
    module = build(config, stage)
    key = f"config.stages.{name}.trainable"
    trainable_shapes, _ = split(abstract_params(module, config, stage, key), stage.trainable, key)
    optimizer = make_optimizer(config.optimizer, stage, trainable_shapes)
    wanted = abstract_state(config, stage, run.mesh, module, optimizer)
    with Checkpoints(run.checkpoints(name), config.checkpoints_kept, run.reporter.say, config.checkpoint_best) as checkpoints:
        found = checkpoints.restore_latest(wanted.params, {"opt_state": wanted.opt_state, "step": wanted.step})
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
            state, seconds, meta = fresh_state(run, name, module, optimizer), 0.0, {}
        say_placement(run.reporter, name, config, run.mesh, state)
        memories = stored_memories(run, name, state)
        stage_run = _StageRun(run, name, stage, module, optimizer, checkpoints, seconds, memories, meta.get("before", {}))
        with jax.set_mesh(run.mesh):
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
    memories: Memories | None = None
    """What is read in place of running the encoder."""
    before: dict[str, float] = dataclasses.field(default_factory=dict)
    """Of a stage that starts from a pretrained language model, numbers on held-out rows before its first step."""
    began: float = dataclasses.field(default_factory=time.monotonic)
    logged: tuple[float, int] = (0.0, 0)
    """When numbers were last written, and at which step."""
    blocked: float = 0.0
    """Seconds that training stood still for saves since then."""
    waited: float = 0.0
    """Seconds that it waited for batches since then."""
    skipped: int = 0
    """Rows that this process could not read so far, and read others in their place."""

    def elapsed(self) -> float:
        """Seconds trained so far, over all processes."""
        return self.seconds + time.monotonic() - self.began

    def train(self, state: TrainState) -> dict[str, Any]:
        run, stage, config = self.run, self.stage, self.run.config
        first = int(state.step)
        step_fn = jit_train_step(config, stage, run.mesh, self.module, self.optimizer, run.ids)
        weighed = set(stage.objectives) & {*WEIGHTINGS, *REGRESSIONS}
        attributions = open_attributions(config.data.attributions) if weighed else None
        order = TrainBatches(
            run.data.train,
            stage.rows,
            config.seed,
            first_row(config, stage),
            attributions,
            self.memories,
            part=local_rows(run.mesh, stage.rows),
            skip_damaged=config.data.skip_damaged,
        )
        batches = order.from_step(first, place=lambda batch: Batch(**put_batch(batch, run.mesh, stage.rows)))
        watch = self._watcher()
        writers = make_writers(config, self.name, run.folder(self.name), first)
        pending: list[tuple[int, Metrics]] = []
        schedule = Schedule(config.checkpoint_every, config.checkpoint_minutes, agree=agreed, ask_every=config.log_every)
        held_out: dict[str, float] = {}
        try:
            if not first and without_memory(self.module, stage):
                self.before = watch(state, 0, writers)
            self.logged = (time.monotonic(), first)
            with run.reporter.bar(self.name, stage.steps, first) as bar, run.watch.stop_requests():
                for step in range(first + 1, stage.steps + 1):
                    batch, waited = run.watch.next(batches)
                    self.waited += waited
                    self.skipped = order.skipped
                    state, metrics = step_fn(state, batch)
                    text, held_out = None, {}
                    last = step == stage.steps
                    if step % config.log_every == 0:
                        # The newest step is still being computed: read those before it and do not wait.
                        text = self._log(pending, writers)
                        pending = []
                    pending.append((step, metrics))
                    if step % config.evaluate_every == 0 or last:
                        text = self._log(pending, writers) or text
                        pending = []
                        held_out = watch(state, step, writers)
                    stopping = run.watch.stop_here()
                    if schedule.due(step) or self.checkpoints.improves(held_out) or last or stopping:
                        self._log(pending, writers)
                        pending = []
                        self._save(state, step, held_out)
                        schedule.saved()
                    bar.advance(1, text)
                    if stopping:
                        self.checkpoints.wait()
                        raise Interrupted(
                            f"{self.name}: asked to stop; step {step} is saved, the same command goes on from there",
                            stopping,
                        )
                self.checkpoints.wait()
                if stopping := run.watch.stop_here():
                    raise Interrupted(
                        f"{self.name}: asked to stop; all {stage.steps} steps are saved, the same command goes on from there",
                        stopping,
                    )
        finally:
            batches.close()
            for writer in writers:
                writer.close()
        return self._meta(stage.steps, held_out)

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
        rest["loader_seconds"], self.waited = self.waited, 0.0
        if self.skipped:
            rest["rows_skipped"] = float(self.skipped)
        if self.blocked:
            rest["checkpoint_seconds"], self.blocked = self.blocked, 0.0
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

    def _watcher(self) -> Callable[[TrainState, int, list[Writer]], dict[str, float]]:
        """A look at a few held-out rows, written as split `validation` and returned."""
        run = self.run
        # Held-out rows have no attributions, so there is nothing to compare an estimate of them with.
        names = tuple(sorted(set(self.stage.objectives) - set(REGRESSIONS)))
        step_fn = jit_evaluation_step(self.stage, run.mesh, self.module, names, run.ids)
        base = without_memory(self.module, self.stage)
        empty_fn = jit_evaluation_step(self.stage, run.mesh, base, ("next_token",), run.ids) if base else None
        limit = min(WATCHED_ROWS, len(run.data.validation))
        shards = batch_shards(run.mesh)
        batch_rows = -(-limit // shards) * shards
        part = local_rows(run.mesh, batch_rows)
        batches = list(evaluation_batches(run.data.validation, batch_rows, limit, run.ids.pad, part))

        def watch(state: TrainState, step: int, writers: list[Writer]) -> dict[str, float]:
            if not names:
                return {}

            def look(step_fn: Any) -> list[dict[str, Term]]:
                return [jax.device_get(step_fn(state.params, put_batch(batch, run.mesh, batch_rows))) for batch in batches]

            terms, values = look(step_fn), {}
            if empty_fn:
                values |= term_values(EMPTY, sum_terms([term["next_token"] for term in look(empty_fn)]))
            for name in names:
                values |= term_values(name, sum_terms([t[name] for t in terms]))
            for writer in writers:
                writer.write(step, "validation", values)
            return values

        return watch

    def _meta(self, step: int, held_out: dict[str, float]) -> dict[str, Any]:
        run = self.run
        return {
            "stage": self.name,
            "step": step,
            "config": to_json(run.config),
            "tokenizer": run.data.tokenizer.fingerprint,
            "next_row": first_row(run.config, self.stage) + step * self.stage.rows,
            "seconds": self.elapsed(),
            "metrics": held_out,
        } | ({"before": self.before} if self.before else {})

    def _save(self, state: TrainState, step: int, held_out: dict[str, float]) -> None:
        began, optimizer = time.monotonic(), {"opt_state": state.opt_state, "step": state.step}
        self.checkpoints.save(step, state.params, optimizer, self._meta(step, held_out))
        self.blocked += time.monotonic() - began


def sum_terms(terms: list[Term]) -> Term:
    """Adds terms up."""
    return functools.reduce(Term.__add__, terms)


def term_values(name: str, term: Term) -> dict[str, float]:
    """A term as means: nats a token and accuracy."""
    count = max(float(term.count), 1.0)
    return {f"{name}/nats": float(term.nats) / count, f"{name}/accuracy": float(term.correct) / count}
