"""A memjax model for EleutherAI's lm-evaluation-harness (0.4.10 or newer), and its tasks put to one.

    from memjax.evals import open_text_model
    from memjax.interop.lm_eval import evaluate, harness_model

    model = open_text_model("runs/quickstart", "combined")
    results = evaluate(model, ["arc_easy_local", "lambada_local"], data="DIR")

`harness_model(model)` is what `lm_eval.simple_evaluate(model=...)` takes. What is asked is answered in memjax/evals/text_model.py; here is
only what the harness is called by. It is imported where it is needed: it is the extra `eval`.
"""

import contextlib
import functools
import importlib.util
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

import memjax
from memjax.evals.errors import EvalError
from memjax.evals.text_model import TextModel

TASKS = Path(__file__).with_name("tasks")
"""The tasks of local files."""
INSTALL = "pip install 'memjax[eval]'"
RESAMPLES = 1000
"""Of documents, where the harness estimates a standard error by drawing them anew, which it does in plain Python."""
NO_FORK = "DISABLE_MULTIPROC"
"""The environment variable that keeps the harness to one process."""


def require_harness() -> None:
    """Raises EvalError where the harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise EvalError(f"the tasks are those of lm-evaluation-harness, which is not installed: {INSTALL}")


def harness_model(model: TextModel) -> Any:
    """The model as an `lm_eval.api.model.LM`.

    Raises:
      EvalError: the harness is not installed.
    """
    require_harness()
    return _model_class()(model)


def evaluate(
    model: TextModel,
    tasks: Sequence[str],
    include_path: str = "",
    data: str = "",
    limit: int | None = None,
    num_fewshot: int | None = None,
    log_samples: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What `lm_eval.simple_evaluate` returns: metrics by task under `results`, and the settings and versions of the tasks.

    Args:
      model: whom to ask.
      tasks: names of tasks, groups or tags: the harness's own, those of memjax/interop/tasks, and those of `include_path`.
      include_path: a folder of task files.
      data: the folder that tasks of local files read.
      limit: documents of each task, at most.
      num_fewshot: worked examples before each question; by default what the task says.
      log_samples: keep every document with what was asked and answered, under `samples`.
      metadata: given to tasks that take any.

    Raises:
      EvalError: the harness is not installed, a task is not known, or its documents cannot be loaded.
    """
    require_harness()
    import lm_eval

    if include_path and not Path(include_path).is_dir():
        raise EvalError(f"include_path={include_path} is no folder; give one of task files (.yaml)")
    manager = _manager(tasks, include_path, {"data": data, **(metadata or {})} if data else dict(metadata or {}))
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
    """What finds the tasks. Those of the harness are looked through only for names that are of no other folder: there are thousands."""
    folders = [str(TASKS), *([include_path] if include_path else [])]
    manager = unknown = None
    for defaults in (False, True):
        manager = _manager_class()(include_path=folders, include_defaults=defaults, metadata=metadata)
        unknown = [name for name in tasks if name not in manager.all_tasks and not Path(name).is_file()]
        if tasks and not unknown:
            return manager
    own = ", ".join(sorted(path.stem for path in TASKS.glob("*.yaml")))
    what = f"has no task {unknown[0]!r}" if unknown else "is empty"
    raise EvalError(f"tasks {what}; those of local files are {own}, all others are listed by `lm_eval ls tasks`")


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The harness says much that is of no concern here; and it must not fork, which a process that runs JAX does not survive."""
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
    """Of what the numbers depend on."""
    found = {"memjax": memjax.__version__, "jax": jax.__version__}
    with contextlib.suppress(PackageNotFoundError):
        found["lm_eval"] = version("lm_eval")
    return found


@functools.cache
def _model_class() -> Any:
    from lm_eval.api.model import LM

    class HarnessModel(LM):
        """Hands the harness's requests on, in their order, and its answers back."""

        def __init__(self, model: TextModel) -> None:
            super().__init__()
            self._model = model

        @property
        def tokenizer_name(self) -> str:
            return f"memjax-{self._model.tokenizer.fingerprint}"

        def get_model_info(self) -> dict[str, Any]:
            """What the results say of the model."""
            return dict(self._model.about)

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return self._told("loglikelihood", requests, self._model.loglikelihood([request.args for request in requests]))

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            found = self._model.rolling([request.args[0] for request in requests])
            return self._told("loglikelihood_rolling", requests, found)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return self._told("generate_until", requests, self._model.generate_until([request.args for request in requests]))

        def _told(self, name: str, requests: list[Any], found: list[Any]) -> list[Any]:
            for request, answer in zip(requests, found, strict=True):
                self.cache_hook.add_partial(name, request.args, answer)
            return found

    return HarnessModel


@functools.cache
def _manager_class() -> Any:
    from lm_eval.tasks import TaskManager

    class Manager(TaskManager):
        """Says in one line why a task cannot be loaded."""

        def load(self, task_list: Any) -> Any:
            try:
                return super().load(task_list)
            except Exception as error:
                # A task runs code of its own and of the hub, whatever it raises: its documents are not there.
                why = (str(error).strip() or type(error).__name__).splitlines()[0]
                hint = "" if type(error).__name__ == "LocalDataError" else "; tasks of local files, NAME_local, read --data=DIR"
                names = ", ".join(map(str, task_list))
                raise EvalError(f"tasks {names} cannot be loaded: {why}{hint}") from error

    return Manager
