"""The plan of `memjax compare`: sizes, the budget of stored bits, and dials that meet it."""

import bisect
import dataclasses
import functools
from collections.abc import Iterator

from memjax import models
from memjax.config import Backbone, Config, ConfigError, Data, Model, Optimizer, Stage
from memjax.config.model import reading
from memjax.experiment.compare.task import Task
from memjax.models.memory import VALID
from memjax.models.peers import PEERS
from memjax.models.peers.adapters import PeerAdapter

LARGEST = 4096
"""The largest dial that a budget is filled with."""
MATRICES = r"blocks.*/(kernel|mixing)$"
OURS = {
    "memory_model": "the decoder reads vectors of earlier chunks from slots",
    "reading": "the decoder reads vectors of earlier chunks by their places",
    "causal_lm": "full context: all tokens are kept, the upper reference",
    "no_memory": "nothing is kept, the control",
}
"""Rows of our own families, and what each is."""
ROLES = {"causal_lm": "reference", "no_memory": "control"}
"""Rows that are there for the others."""


@dataclasses.dataclass(frozen=True)
class Scale:
    """Sizes of a comparison."""

    width: int
    layers: int
    steps: int
    batch_size: int
    batches: int
    """Held-out batches of an evaluation."""
    lengths: tuple[int, ...]
    """Chunks that are written in evaluations; the first is that of training."""
    vectors: int
    """Vectors of a chunk that the budget allows, of the decoder's width, in float32."""
    task: Task = dataclasses.field(default_factory=Task)

    @property
    def bits(self) -> int:
        """The budget."""
        return 32 * self.width * self.vectors * self.task.written


SCALES = {
    "tiny": Scale(
        width=16,
        layers=1,
        steps=4,
        batch_size=2,
        batches=1,
        lengths=(4, 8),
        vectors=2,
        task=Task(vocab_size=96, chunk_length=8, written=4, values=4, keys=16),
    ),
    "small": Scale(128, 2, 350, 16, 16, (8, 16, 24, 32), 4),
    "pod": Scale(1024, 12, 20_000, 256, 16, (8, 16, 24, 32), 4, Task(pairs=4, keys=256)),
}


def names() -> tuple[str, ...]:
    """Return the names of all rows."""
    return (*OURS, *PEERS)


def listing() -> Iterator[str]:
    """Yield one line for each architecture: name, kind, status and source."""
    for name, what in OURS.items():
        yield f"{name:18}{'ours':7}{ROLES.get(name, 'works'):16}{what}"
    for name, adapter in PEERS.items():
        yield f"{name:18}{adapter.kind:7}{adapter.status:16}{adapter.published}"


def setting(name: str, scale: Scale) -> tuple[Config, Stage]:
    """Return the config and the stage of a row, with dials that meet the budget.

    Raises:
      ConfigError: there is no such row, or the budget is too small for it.
    """
    ConfigError.require_one_of("--names", name, names())
    task = scale.task
    stack = Backbone(width=scale.width, layers=scale.layers, heads=4, mlp_ratio=2.0, qk_norm=True)
    model = Model(chunk_length=task.chunk_length, decoder=stack)
    if name in OURS:
        model = dataclasses.replace(
            model, encoder=stack, memory_vectors=scale.vectors, readout="memory_tokens"
        )
        model = reading(model) if name == "reading" else model
    config = Config(
        data=Data(
            vocab_size=task.vocab_size, sequence_length=task.chunk_length * (task.written + 1)
        ),
        model=model,
        optimizer=Optimizer(
            rules=((MATRICES, "muon"), (".*", "adamw")),
            rate_rules=((MATRICES, 10.0), ("embed/embedding$", 4.0), (".*", 1.0)),
        ),
    )
    stage = Stage(
        family=name if name in (*PEERS, "causal_lm") else "memory_model",
        objectives={"next_token": 1.0},
        steps=scale.steps,
        batch_size=scale.batch_size,
        learning_rate=2e-3,
        warmup_steps=min(20, scale.steps),
        lr_schedule="linear",
        memory=name != "no_memory",
    )
    if name in PEERS:
        stage = dataclasses.replace(
            stage,
            trainable=PEERS[name].trainable,
            dials=fit(PEERS[name], config, stage, scale.bits),
        )
    return config, stage


def fit(adapter: PeerAdapter, config: Config, stage: Stage, bits: int) -> dict[str, int]:
    """Return the dials with which a peer keeps as many bits as the budget allows.

    Raises:
      ConfigError: even the smallest keep more.
    """
    sizes: dict[str, int] = {}
    if adapter.sized:
        # What is kept grows with the dial.
        values = range(1, LARGEST + 1)
        kept = functools.partial(_kept, config, stage, adapter.sized)
        sizes = {adapter.sized: max(1, bisect.bisect_right(values, bits, key=kept))}
    found = stored_bits(config, dataclasses.replace(stage, dials=sizes))
    ConfigError.require(
        found <= bits,
        f"--names: {adapter.name} keeps {found:,} bits of a text, expected at most {bits:,}. Leave"
        " it out, or use a larger --scale",
    )
    return sizes


def stored_bits(config: Config, stage: Stage) -> int:
    """Return the bits that are kept of a text of as many chunks as in training."""
    module = models.build(config, stage)
    chunks = config.chunks - 1
    if models.can(module, "reads_rows"):
        decoder = config.model.decoder
        numbers = 2 * decoder.layers * decoder.attention_dim
        return 32 * numbers * chunks * config.model.chunk_length
    if not stage.memory:
        return 0
    ledger = module.ledger(chunks)  # type: ignore[attr-defined]
    return sum(numbers * size for name, (numbers, size) in ledger.items() if name != VALID)


def _kept(config: Config, stage: Stage, dial: str, value: int) -> int:
    return stored_bits(config, dataclasses.replace(stage, dials={dial: value}))
