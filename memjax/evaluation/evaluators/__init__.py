"""Evaluators: the entries of `config.evaluators`, evaluations of a stage on held-out sequences.

To add a kind, write one file with a function like `open_validation` and add one line to `KINDS`.
The function returns another one, which evaluates the parameters that it is called with, or None
where the stage's model has nothing to evaluate.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from memjax.config import Config, ConfigError
from memjax.config import Evaluator as Settings
from memjax.evaluation.evaluators.accuracy import open_accuracy
from memjax.evaluation.evaluators.reading import open_reading
from memjax.evaluation.evaluators.recall import open_recall
from memjax.evaluation.evaluators.validation import open_validation
from memjax.training.init_state import Run
from memjax.training.loop import Evaluate, Evaluator

KINDS: Mapping[str, Callable[[Run, str, Settings], Evaluate | None]] = {
    "validation": open_validation,
    "accuracy": open_accuracy,
    "recall": open_recall,
    "reading": open_reading,
    "base_validation": functools.partial(open_validation, base=True),
    "base_accuracy": functools.partial(open_accuracy, base=True),
}
"""The kinds of evaluators, for `config.evaluators.NAME.kind`:

- `validation`: the losses of the stage's objectives, for curves while training;
- `accuracy`: losses, bits per byte and accuracy with intervals and per position, teacher-forced;
- `recall`: chunks that are reconstructed from their memories alone, by greedy decoding;
- `reading`: recall of any of 16 to 4,096 memories of held-out text, and next tokens by the number
  of memories, in models that read by places of the text;
- `base_validation`, `base_accuracy`: the same numbers of a pretrained decoder without memories, in
  stages that train one.
"""


def check_evaluators(config: Config) -> None:
    """Raise ConfigError for the first evaluator of an unknown kind."""
    for name, settings in config.evaluators.items():
        ConfigError.require_one_of(f"config.evaluators.{name}.kind", settings.kind, KINDS)


def open_evaluators(run: Run, name: str, training: bool) -> list[Evaluator]:
    """Return the evaluators of a stage, in the order of the config.

    Args:
      run: the run.
      name: the stage.
      training: True for those that evaluate while the stage trains, False for those that evaluate
        the trained stage at the end of the run.

    Raises:
      ConfigError: an evaluator is of an unknown kind.
    """
    check_evaluators(run.config)
    opened: list[Evaluator] = []
    for settings in run.config.evaluators.values():
        if bool(settings.every) == training:
            evaluate: Any = KINDS[settings.kind](run, name, settings)
            opened += [Evaluator(settings.every, evaluate)] if evaluate else []
    return opened
