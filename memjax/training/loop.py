"""Training of one stage: resume, step, log, evaluate, save.

Weights come from, in this order: the stage's own last complete checkpoint; the source that
`init_from` names; a fresh initialisation.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from memjax.allocator import suit
from memjax.checkpoints import Checkpoints, Schedule
from memjax.config import to_json
from memjax.data import TrainBatches, open_attributions
from memjax.errors import MemjaxError
from memjax.interop.huggingface.settings import folder_of
from memjax.objectives import Batch, MetricSum, weighed
from memjax.sharding import agreed, local_rows, put_batch, report_params
from memjax.sharding.chips import peak_flops
from memjax.training.compiled_steps import StageSteps
from memjax.training.encode_corpus import reads_memories, stored_memories
from memjax.training.flops import model_flops
from memjax.training.init_state import Run, check_origin, data_offset, init_train_state
from memjax.training.optimizer import Tree, split
from memjax.training.status import COMPILATION, EVALUATION, SAVES
from memjax.training.step import Metrics, TrainState
from memjax.training.writers import Trace, Write, make_writers

Evaluate = Callable[[Tree, Mapping[str, Any]], Mapping[str, Any]]
"""Numbers of a model on held-out sequences. The arguments are its parameters, and the numbers that
the evaluators before this one returned."""


class Evaluator(NamedTuple):
    """An entry of `config.evaluators`, opened for one stage."""

    every: int
    """Steps between two evaluations; the last step is evaluated too. 0 is never while training."""
    evaluate: Evaluate


class NonFiniteError(MemjaxError):
    """A loss is NaN or infinite; the message names step, loss and last good checkpoint."""

    status = 1


class Preempted(MemjaxError):
    """A signal stopped the process, which saved its step first; `signal` is its number."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.signal = number
        self.status = 128 + number


def train_stage(run: Run, name: str, evaluators: Sequence[Evaluator] = ()) -> dict[str, Any]:
    """Train a stage to its last step and return the metadata of its last checkpoint.

    Args:
      run: the run.
      name: the stage.
      evaluators: those that evaluate while the stage trains.

    Raises:
      NonFiniteError: a loss is NaN or infinite.
      Preempted: SIGTERM or SIGINT came; the step is saved.
      CheckpointError: the initial weights do not fit, or have another config or tokenizer.
      MemoriesError: stored memories belong to other sequences or to another encoder.
      ConfigError: the batch does not divide over the devices.
    """
    config, stage, mesh = run.config, run.config.stages[name], run.mesh
    steps = StageSteps(config, name, mesh, run.ids)
    with contextlib.ExitStack() as stack:
        # State: resumed, or before the first step.
        checkpoints = stack.enter_context(
            Checkpoints(
                run.checkpoints(name),
                config.checkpoints_kept,
                run.reporter.log,
                config.checkpoint_best,
                run.watch.fail,
            )
        )
        wanted = steps.state
        saved = checkpoints.restore_latest(
            wanted.params, {"opt_state": wanted.opt_state, "step": wanted.step}
        )
        if saved:
            start, params, rest, meta = saved
            check_origin(run, name, meta, f"{checkpoints.folder}/{start}")
            if start == stage.steps:
                run.reporter.log(f"{name}: all {start} steps are done")
                return meta
            run.reporter.log(f"{name}: resuming from step {start}")
            trainable, frozen = split(params, stage.trainable, "trainable")
            state = TrainState(rest["step"], trainable, frozen, rest["opt_state"])
        else:
            start, meta = 0, {}
            state = init_train_state(run, name, steps.module, steps.optimizer)
        run.status.begin_stage(name, start, stage.steps, _peak_seconds(steps))
        report_params(run.reporter, name, state.params, state.trainable, config.mesh.rules, mesh)

        # Data, from the step on where the stage stopped.
        order = TrainBatches(
            run.data.train,
            stage.batch_size,
            config.seed,
            data_offset(config, stage),
            open_attributions(config.data.attributions) if weighed(stage) else None,
            stored_memories(run, name, state),
            part=local_rows(mesh, stage.batch_size),
            skip_damaged=config.data.skip_damaged,
        )
        batches = order.from_step(
            start, place=lambda batch: Batch(**put_batch(batch, mesh, stage.batch_size))
        )
        stack.callback(batches.close)

        # Logs, checkpoints and what else happens between steps.
        writers = make_writers(stack, config, name, run.folder(name), start)
        log = _Log(run, name, checkpoints, writers, order, float(meta.get("seconds", 0.0)))
        schedule = Schedule(
            config.checkpoint_every,
            config.checkpoint_minutes,
            agree=agreed,
            clock_every=config.log_every,
        )
        trace = stack.enter_context(Trace(run.profile, run.folder(name) / "profile"))
        stack.enter_context(jax.set_mesh(mesh))
        jitted = train_step = steps.jit_train_step()

        before = meta.get("before", {})
        if not start and folder_of(stage.init_from):
            before = _evaluate(run, evaluators, state.params)
            log.write_held_out(0, before)
        metadata = functools.partial(_metadata, run, name, before)
        bar = stack.enter_context(run.reporter.bar(name, stage.steps, start))
        stack.enter_context(run.watch.stop_requests())
        log.start(start)
        for step in range(start + 1, stage.steps + 1):
            last = step == stage.steps
            with trace.step(step):
                batch, seconds = run.watch.next(batches)
                log.waited += seconds
                if step == start + 1:
                    with run.status.timing(COMPILATION):
                        train_step = suit(jitted.lower(state, batch).compile())
                state, metrics = train_step(state, batch)
            trace.stop_after(step, metrics)
            text = None
            if step % config.log_every == 0:
                # This step is still being computed: read those before it, and do not wait.
                text = log.flush()
            log.pending.append((step, metrics))

            held_out = {}
            due = [e for e in evaluators if e.every and (last or step % e.every == 0)]
            if due:
                text = log.flush() or text
                held_out = _evaluate(run, due, state.params)
                log.write_held_out(step, held_out)

            stopping = run.watch.stop_here()
            if schedule.due(step) or checkpoints.improves(held_out) or last or stopping:
                log.flush()
                with log.blocking():
                    optimizer_state = {"opt_state": state.opt_state, "step": state.step}
                    meta = metadata(step, log.elapsed(), held_out)
                    checkpoints.save(step, state.params, optimizer_state, meta)
                schedule.saved()
            bar.advance(1, text)
            if stopping:
                break
        with run.status.timing(SAVES):
            checkpoints.wait()
        if stopping := stopping or run.watch.stop_here():
            raise Preempted(
                f"{name}: stopped by signal {stopping}; step {step} is saved. Run the same command"
                " to resume",
                stopping,
            )
        return metadata(stage.steps, log.elapsed(), held_out)


def _peak_seconds(steps: StageSteps) -> float:
    """Return the seconds of a training step at the peak of all devices, 0 if it is unknown."""
    peak = peak_flops(jax.devices()[0].device_kind)
    if peak is None:
        return 0.0
    stored = reads_memories(steps.config, steps.stage, steps.trainable)
    return model_flops(steps.config, steps.stage, stored).total / (peak * jax.device_count())


def _evaluate(run: Run, evaluators: Sequence[Evaluator], params: Tree) -> dict[str, float]:
    """Return the numbers of all evaluators; what is not a number is left out."""
    found: dict[str, Any] = {}
    with run.status.timing(EVALUATION):
        for evaluator in evaluators:
            found |= evaluator.evaluate(params, found)
    return {key: value for key, value in found.items() if isinstance(value, float)}


def _metadata(
    run: Run,
    name: str,
    before: Mapping[str, float],
    step: int,
    seconds: float,
    held_out: Mapping[str, float],
) -> dict[str, Any]:
    """Return the metadata of a checkpoint.

    Args:
      run: the run.
      name: the stage.
      before: numbers on held-out sequences before the first step, of a pretrained model.
      step: the step.
      seconds: seconds trained so far, over all processes that trained the stage in turn.
      held_out: numbers on held-out sequences at this step.
    """
    stage = run.config.stages[name]
    return {
        "stage": name,
        "step": step,
        "config": to_json(run.config),
        "tokenizer": run.data.tokenizer.fingerprint,
        "next_row": data_offset(run.config, stage, step),
        "seconds": seconds,
        "metrics": held_out,
    } | ({"before": before} if before else {})


@dataclasses.dataclass
class _Log:
    """Metrics that are not read from the device yet, and where they are written."""

    run: Run
    name: str
    checkpoints: Checkpoints
    writers: Sequence[Write]
    batches: TrainBatches
    before: float
    """Seconds trained by earlier processes."""
    pending: list[tuple[int, Metrics]] = dataclasses.field(default_factory=list)
    waited: float = 0.0
    """Seconds of waiting for batches since the last log."""
    blocked: float = 0.0
    """Seconds of waiting for saves since the last log."""
    began: float = dataclasses.field(default_factory=time.monotonic)
    since: tuple[float, int, float] = (0.0, 0, 0.0)
    """Time and step of the last log, and the seconds apart from steps until then."""

    def elapsed(self) -> float:
        """Return the seconds trained so far, over all processes."""
        return self.before + time.monotonic() - self.began

    def start(self, step: int) -> None:
        """Count the time of steps from now on, which is after `step`."""
        self.since = (time.monotonic(), step, self.run.status.apart)

    @contextlib.contextmanager
    def blocking(self) -> Iterator[None]:
        """Add the time of a block to `blocked`."""
        began = time.monotonic()
        with self.run.status.timing(SAVES):
            yield
        self.blocked += time.monotonic() - began
        self.run.status.saved()

    def flush(self) -> str | None:
        """Write the means over the pending steps, at the last of them, and return a summary.

        Raises:
          NonFiniteError: a number is not finite.
        """
        if not self.pending:
            return None
        fetched = [(step, jax.device_get(metrics)) for step, metrics in self.pending]
        self.pending = []
        for step, metrics in fetched:
            self._check_finite(step, metrics)
        step, latest = fetched[-1]
        since, since_step, since_apart = self.since
        self.start(step)
        seconds, apart = self.since[0] - since, self.since[2] - since_apart
        tokens = self.run.tokens(self.name, step - since_step)
        self.run.status.stepped(self.name, step, tokens, seconds - apart)
        losses = {"loss": float(sum(m.loss for _, m in fetched) / len(fetched))}
        for name in latest.terms:
            losses |= mean_metrics(name, [m.terms[name] for _, m in fetched])
        values = losses | {
            "learning_rate": float(latest.learning_rate),
            "gradient_norm": float(sum(m.gradient_norm for _, m in fetched) / len(fetched)),
            "tokens_per_second": tokens / max(seconds, 1e-9),
            "seconds": self.elapsed(),
            "loader_seconds": self.waited,
        }
        if self.batches.skipped:
            values["rows_skipped"] = float(self.batches.skipped)
        if self.blocked:
            values["checkpoint_seconds"] = self.blocked
        self.waited = self.blocked = 0.0
        self._write(step, "train", values)
        found = ((name, losses.get(f"{name}/nats")) for name in latest.terms)
        return "  ".join(f"{name} {nats:.3f} nats" for name, nats in found if nats is not None)

    def write_held_out(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers on held-out sequences, if there are any."""
        if values:
            self._write(step, "validation", values)

    def _write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        for write in self.writers:
            write(step, split, values)

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
            f"stage {self.name}, step {step}: {what} is not finite; {where}. Start in another"
            f" --workdir with a lower config.stages.{self.name}.learning_rate, a lower"
            " config.optimizer.clip_norm or a longer warm-up; init_from can name the folders of"
            " finished stages"
        )


def mean_metrics(name: str, sums: Sequence[MetricSum]) -> dict[str, float]:
    """Return the means over all of these metric sums: nats per token, and accuracy.

    Without a target there are none.
    """
    whole = jax.tree.map(lambda *parts: sum(parts), *sums)
    if not whole.count:
        return {}
    count = max(float(whole.count), 1.0)
    return {
        f"{name}/nats": float(whole.nats) / count,
        f"{name}/accuracy": float(whole.correct) / count,
    }
