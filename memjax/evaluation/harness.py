"""A memjax model as a model of EleutherAI's lm-evaluation-harness (0.4.10 or newer).

    import memjax
    from memjax.evaluation.harness import evaluate, harness_model
    from memjax.evaluation.text_scorer import text_scorer

    model = text_scorer(memjax.load("runs/quickstart", "combined"))
    results = evaluate(model, ["arc_easy_local", "lambada_local"], data="DIR")

`harness_model(model)` is the model for `lm_eval.simple_evaluate(model=...)`. TextScorer
(memjax/evaluation/text_scorer.py) answers requests. Functions import the harness, which is the
extra `eval`.
"""

import contextlib
import functools
import importlib.util
import logging
import os
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from memjax.errors import MemjaxError
from memjax.evaluation.text_scorer import TextScorer
from memjax.version import __version__

TASKS = Path(__file__).with_name("tasks")
"""Folder of the tasks of local files."""
RESAMPLES = 1000
"""Resamples of documents for the harness's standard errors, which it computes in plain Python."""
NO_FORK = "DISABLE_MULTIPROC"
"""Environment variable that restricts the harness to one process."""


def require_harness() -> None:
    """Raise MemjaxError unless the harness is installed."""
    MemjaxError.require(
        importlib.util.find_spec("lm_eval"),
        "the tasks are those of lm-evaluation-harness, which is not installed: pip install lm-eval",
    )


def harness_model(model: TextScorer) -> Any:
    """Return the model as an `lm_eval.api.model.LM`.

    Raises:
      MemjaxError: the harness is not installed.
    """
    require_harness()
    return _model_class()(model)


def evaluate(
    model: TextScorer,
    tasks: Sequence[str],
    include_path: str = "",
    data: str = "",
    limit: int | None = None,
    num_fewshot: int | None = None,
    log_samples: bool = False,
) -> dict[str, Any]:
    """Evaluate a model on tasks, and return the result of `lm_eval.simple_evaluate`.

    The result has metrics by task under `results`, and the settings and versions of the tasks.

    Args:
      model: the model to evaluate.
      tasks: names of tasks, groups or tags: the harness's own, those of memjax/evaluation/tasks,
        and those of `include_path`.
      include_path: a folder of task files.
      data: the folder that tasks of local files read.
      limit: documents per task, at most.
      num_fewshot: examples with answers before each question; by default the task's number.
      log_samples: keep every document with its requests and answers, under `samples`.

    Raises:
      MemjaxError: the harness is not installed, a task is unknown, or its documents cannot be
        loaded.
    """
    require_harness()
    import lm_eval

    MemjaxError.require(
        not include_path or Path(include_path).is_dir(),
        f"include_path={include_path}: not a folder, expected a folder of task files (.yaml)",
    )
    manager = _manager(tasks, include_path, {"data": data} if data else {})
    with _quietly():
        found = lm_eval.simple_evaluate(
            model=harness_model(model),
            tasks=list(tasks),
            num_fewshot=num_fewshot,
            limit=limit,
            batch_size=model.scorer.batch,
            bootstrap_iters=RESAMPLES,
            log_samples=log_samples,
            task_manager=manager,
        )
    return dict(found or {})


def _manager(tasks: Sequence[str], include_path: str, metadata: dict[str, Any]) -> Any:
    """Return the manager of the tasks.

    It reads the harness's own tasks, which are thousands, only for names that no other folder has.
    """
    folders = [str(TASKS), *([include_path] if include_path else [])]
    for defaults in (False, True):
        manager = _manager_class()(
            include_path=folders, include_defaults=defaults, metadata=metadata
        )
        unknown = [
            name for name in tasks if name not in manager.all_tasks and not Path(name).is_file()
        ]
        if tasks and not unknown:
            return manager
    own = ", ".join(sorted(path.stem for path in TASKS.glob("*.yaml")))
    what = f"has no task {unknown[0]!r}" if unknown else "is empty"
    raise MemjaxError(
        f"tasks {what}; those of local files are {own}, all others are listed by `lm_eval ls tasks`"
    )


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silence the harness's log, and prevent it from forking.

    A process that runs JAX does not survive a fork.
    """
    logger, before = logging.getLogger("lm_eval"), os.environ.get(NO_FORK)
    level = logger.level
    logger.setLevel(logging.ERROR)
    os.environ[NO_FORK] = "1"
    try:
        yield
    finally:
        logger.setLevel(level)
        if before is None:
            del os.environ[NO_FORK]
        else:
            os.environ[NO_FORK] = before


def versions() -> dict[str, str]:
    """Return the versions of the packages that the numbers depend on."""
    found = {"memjax": __version__, "jax": jax.__version__}
    with contextlib.suppress(PackageNotFoundError):
        found["lm_eval"] = version("lm_eval")
    return found


@functools.cache
def _model_class() -> Any:
    from lm_eval.api.model import LM

    class HarnessModel(LM):
        """Pass the harness's requests to TextScorer in their order, and return its answers."""

        def __init__(self, model: TextScorer) -> None:
            super().__init__()
            self._model = model

        @property
        def tokenizer_name(self) -> str:
            return f"memjax-{self._model.tokenizer.fingerprint}"

        def get_model_info(self) -> dict[str, Any]:
            """Return the description of the model in the results."""
            return dict(self._model.about)

        def loglikelihood(
            self, requests: list[Any], disable_tqdm: bool = False
        ) -> list[tuple[float, bool]]:
            return self._told(
                "loglikelihood",
                requests,
                self._model.loglikelihood(
                    [(str(a), str(b)) for a, b in (x.args for x in requests)]
                ),
            )

        def loglikelihood_rolling(
            self, requests: list[Any], disable_tqdm: bool = False
        ) -> list[float]:
            # The harness turns texts that read like lists into lists.
            found = self._model.rolling([str(request.args[0]) for request in requests])
            return self._told("loglikelihood_rolling", requests, found)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return self._told(
                "generate_until",
                requests,
                self._model.generate_until([request.args for request in requests]),
            )

        def _told(self, name: str, requests: list[Any], found: list[Any]) -> list[Any]:
            for request, answer in zip(requests, found, strict=True):
                self.cache_hook.add_partial(name, request.args, answer)
            return found

    return HarnessModel


@functools.cache
def _manager_class() -> Any:
    from lm_eval.tasks import TaskManager

    class Manager(TaskManager):
        """Task manager that reports in one line why a task cannot be loaded."""

        def load(self, task_list: Any) -> Any:
            try:
                return super().load(task_list)
            except Exception as error:
                # A task runs code of its own and of the hub. Whatever it raises, its documents are
                # missing.
                why = (str(error).strip() or type(error).__name__).splitlines()[0]
                # The harness imports the file of the tasks under another name.
                hint = (
                    ""
                    if getattr(error, "names_file", False)
                    else "; tasks of local files, NAME_local, read --task_folder=FOLDER"
                )
                raise MemjaxError(
                    f"tasks {', '.join(map(str, task_list))} cannot be loaded: {why}{hint}"
                ) from error

    return Manager
