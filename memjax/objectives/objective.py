"""An objective: the request that it builds from a batch, and the scoring of the answer.

Objectives of one stage that share a `score` function are scored by one call of it, so that those of
one memory model share one encoder call and one decoder call.
"""

import dataclasses
from collections.abc import Callable

from memjax.config import Config, Stage
from memjax.models import Request, find
from memjax.models.adapter import no_check
from memjax.models.request import Asking, Requests, Variables
from memjax.objectives.terms import Scores


def score_labels(asking: Asking, variables: Variables, requests: Requests) -> dict[str, Scores]:
    """Scores every label of every request by the model's own probabilities."""
    answer = find(asking.module).answer
    assert answer is not None, type(asking.module)
    return {
        name: Scores(*scored, requests[name].weight, requests[name].labels)
        for name, scored in answer(asking, variables, requests).items()
    }


def plain_loss(asking: Asking, request: Request, scores: Scores) -> Scores:
    """Train on the scores as they are."""
    return scores


@dataclasses.dataclass(frozen=True)
class Objective:
    """One objective."""

    name: str
    needs: str
    """The capability (models/adapter.py) that a family needs for it."""
    request: Callable[[Asking], Request]
    """A pure function of the batch; the model is not run."""
    score: Callable[[Asking, Variables, Requests], dict[str, Scores]] = score_labels
    """From (asking, variables, requests) to scores per request."""
    loss: Callable[[Asking, Request, Scores], Scores] = plain_loss
    """The trained scores, from its own scores; evaluation is plain."""
    shares: str = ""
    """The objective whose request and scores this one shares; empty is its own."""
    held_out: str | None = ""
    """The objective by which held-out sequences are scored in its place: empty is itself, None is
    none."""
    reads_attribution: bool = False
    """True if it reads `config.data.attributions`."""
    check: Callable[[Config, Stage, str], None] = no_check
    """Raises ConfigError for a stage that cannot have it; the last argument is its key,
    `config.stages.NAME`."""

    @property
    def asks(self) -> str:
        """The name of its request."""
        return self.shares or self.name
