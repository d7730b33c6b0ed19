"""The adapter of a family of models: its properties beside its module.

Every family declares one `Adapter` in its own file, and `models/registry.py` has one line per
family. Everything that differs between families is an attribute or a capability of the adapter.

A capability is a plain word:

| word | meaning |
|---|---|
| `encodes` | it has an encoder (models/encoder.py) at the path `encoder` |
| `predicts` | it is trained for next tokens |
| `copies` | it can be prompted with a text to copy |
| `reads_memories` | its decoder reads memories of earlier chunks |
| `reads_rows` | it reads a whole sequence and not chunks of it |
| `reads_chunks` | its sequences have two chunks or more |
| `starts_from_state` | its state scores a chunk's first token; no start token is inserted |
| `reads_own_memory` | its decoder reads the memory of the text that it predicts |
| `reconstructs` | it decodes a chunk from its memory alone |
| `retrieves`, `ranks` | its memories find passages; it scores candidates |
| `estimates` | it returns one number per token |
| `predicts_rows` | it predicts a whole sequence in one call, so that every loss can be weighted |
| `keeps_tokens`, `keeps_memories`, `keeps_state`, `keeps_written` | it generates text, and this is
what it keeps of earlier text |

Shapes: B sequence, X decoded chunk, L token of a chunk.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from memjax.config import Config, ConfigError, Stage
from memjax.models.request import Asking, Request, Requests, Variables
from memjax.models.uses import Use

Answers = dict[str, tuple[Float[Array, "B X L"], Any]]
"""Per request its nats, and whether each label is the most likely one."""


def one_by_one(
    answer: Callable[[Asking, Variables, Request], tuple[jax.Array, jax.Array]],
) -> Callable[[Asking, Variables, Requests], Answers]:
    """Return the `answer` of an adapter that answers every request in calls of its own."""
    return lambda asking, variables, requests: {
        name: answer(asking, variables, request) for name, request in requests.items()
    }


@dataclasses.dataclass(frozen=True)
class NoDials:
    """The dials of a family that has none."""


def no_check(config: Config, stage: Stage, key: str) -> None:
    """Accept every stage."""


@dataclasses.dataclass(frozen=True)
class Adapter:
    """One family of models."""

    name: str
    """The value of `config.stages.NAME.family`."""
    module: type[nn.Module]
    summary: str
    """One or two sentences for the model card."""
    capabilities: frozenset[str]
    build: Callable[[Config, Stage], nn.Module]
    """The module that a stage trains."""
    example: Callable[[Config], jax.Array]
    """The smallest tokens that `module.init` accepts."""
    uses: Callable[[Config, Stage, Requests], Iterator[Use]] | None = None
    """Where a training step applies each part of the parameters, in the order of a forward pass;
    FLOPs follow from it. The requests are abstract and for one sequence. None counts those of the
    traced program."""
    answer: Callable[[Asking, Variables, Requests], Answers] | None = None
    """Nats of the labels of all requests; None where objectives call the module themselves."""
    reads: frozenset[str] = frozenset()
    """Settings of `config.model`, and quirks, that only some families read."""
    untied: tuple[str, ...] = ()
    """Stacks of `config.model` whose token table cannot be a head."""
    backbone: str = "decoder"
    """The setting that describes the stack at the path `backbone`; without one, `encoder`."""
    dials: type = NoDials
    """Settings of this family alone, a dataclass; `config.stages.NAME.dials` gives the values."""
    check: Callable[[Config, Stage, str], None] = no_check
    """Raises ConfigError for a stage that this family cannot train; the last argument is its key,
    `config.stages.NAME`."""

    def dials_of(self, stage: Stage, key: str = "config.stages.NAME") -> Any:
        """The dials of a stage.

        Raises:
          ConfigError: a dial is unknown or has the wrong type.
        """
        fields = {field.name: field for field in dataclasses.fields(self.dials)}
        for name, value in stage.dials.items():
            ConfigError.require(
                name in fields,
                f"{key}.dials.{name}: unknown, expected"
                f" {' or '.join(fields) or 'none'} for {key}.family={self.name!r}. Change it",
            )
            wanted = type(fields[name].default)
            ConfigError.require(
                type(value) is wanted or (wanted is float and type(value) is int),
                f"{key}.dials.{name}: {value!r}, expected {wanted.__name__}. Change it",
            )
        return self.dials(**stage.dials)


ENCODER_READS = frozenset(("noise", "readout", "bottleneck", "one_sided_noise", "residual_noise"))
"""Settings of every family with an encoder."""
PREDICTOR_QUIRKS = frozenset(("unscored_first_tokens", "chunk_means"))
"""Settings and quirks of every family that predicts."""
