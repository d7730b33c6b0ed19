"""Every setting of a run is a field of one of these frozen dataclasses.

A variant of an experiment is another config file, not another setting.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from memjax.config.choices import SHARDING, Rules
from memjax.config.model import Model
from memjax.errors import MemjaxError


class ConfigError(MemjaxError):
    """A setting is unknown, invalid or inconsistent with another; the message names the key."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Settings of the corpus, the tokenizer and the rows of tokens."""

    corpus: str = "python-docs"
    """`python-docs` (the prose inside every CPython); a file, glob or folder of .txt, .jsonl (also
    .gz, .zst), .parquet or .arrayrecord; `tfds:NAME/CONFIG`; `hf:OWNER/NAME:CONFIG` or `hf:FOLDER`;
    or several with weights, `0.7*ONE + 0.3*OTHER` (memjax/data/sources). Empty in a config of
    imported weights."""
    text_field: str = "text"
    """The field of a JSON line that holds the document."""
    vocab_size: int = 1024
    """Entries of the vocabulary, with reserved ids and 256 bytes: rows of the token tables.

    A given tokenizer has at most as many entries.
    """
    tokenizer: str = ""
    """Tokenizer: empty trains a sentencepiece vocabulary on the training split.

    `byte_level` trains the published kind. A path (a tokenizer.model or tokenizer.json, or its
    folder, such as an export) or the name of a released model loads an existing tokenizer.
    """
    sequence_length: int = 128
    """N: tokens per row, a whole number of chunks."""
    packing: str = "packed"
    """Way to cut documents into rows (PACKINGS)."""
    validation_share: float = 0.1
    """Share of the documents that is held out, selected by a hash of their text."""
    skip_damaged: bool = False
    """True skips and counts damaged documents; False stops the preparation at the first."""
    attributions: str = ""
    """File (.npy, float [rows, N]) with an attribution of every token of the training rows.

    Weighted next-token losses read it.
    """
    memories: str = ""
    """Memories of all rows: a folder, as `memjax compress` writes it, or a stage of this run.

    They replace a frozen encoder, which then does not run. A stage's encoder writes them once, into
    the workdir, before the first stage that reads them.
    """


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Layout of the devices. One axis may be -1: all devices that the others leave.

    Over several TPU slices the data axis spans them, and the others stay within one.
    """

    data: int = -1
    """Copies of the model, each with its share of a batch."""
    fsdp: int = 1
    """Devices that share the parameters of a copy, each with its own share of a batch.

    Parameters are gathered where they are used.
    """
    tensor: int = 1
    """Devices that share every matrix product."""
    rules: Rules = SHARDING
    """Mesh axes of the last dimensions of every parameter.

    An axis that does not divide its dimension is left out.
    """


MESHES: Mapping[str, Mesh] = {
    "ddp": Mesh(),
    "fsdp": Mesh(data=1, fsdp=-1),
    "fsdp_tp": Mesh(data=1, fsdp=-1, tensor=4),
}
"""The usual layouts: parameters replicated, parameters split, and products split too."""


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Settings of the optimizer that all stages share. Learning rates are a stage's."""

    rules: Rules = ((".*", "adamw"),)
    """Optimizer of each parameter."""
    rate_rules: Rules = ((".*", 1.0),)
    """Factor on the stage's learning rate."""
    decay_rules: Rules = ((".*", 0.0),)
    """Decoupled weight decay."""
    beta1: float = 0.9
    """AdamW's decay of the mean of gradients per step, at least 0 and less than 1."""
    beta2: float = 0.999
    """AdamW's decay of the mean of squared gradients per step, at least 0 and less than 1."""
    epsilon: float = 1e-8
    """Term added to AdamW's divisor."""
    clip_norm: float = 1.0
    """Global norm to which a gradient is clipped; 0 is no clipping."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training of one model: objectives, steps, trainable parameters and initial weights."""

    family: str = "memory_model"
    """A family of models (memjax/models/registry.py)."""
    dials: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of this family alone, which its own file declares."""
    objectives: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Weight of each objective's mean loss (nats per token)."""
    scored_chunks: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Chunks of each row that an objective scores, drawn at every step; all where it is not named.
    """
    steps: int = 100
    """Steps of the optimizer, one batch each."""
    batch_size: int = 32
    """Rows per batch, over all devices."""
    grad_accum_steps: int = 1
    """Sequential parts of a batch; gradients are those of the whole batch."""
    learning_rate: float = 1e-3
    """Peak learning rate, before factors of `optimizer.rate_rules`."""
    warmup_steps: int = 20
    """Steps of the linear warm-up to the peak, at most `steps`; 0 is none."""
    lr_schedule: str = "cosine"
    """Decay after the warm-up to `final_lr_ratio`: `cosine`, `linear`, or `constant` for none."""
    final_lr_ratio: float = 0.0
    """Learning rate of the last step as a share of `learning_rate`; 0 is reached right after it."""
    trainable: Rules = ((".*", True),)
    """Trainable parameters: True, False, or the rank r of an adapter of a block's matrix.

    The matrix is then frozen, and a trainable product of two matrices of rank r is added to it
    (Hu et al. 2021, arXiv 2106.09685). Frozen parameters are split off before differentiation.
    """
    frozen_dtypes: Rules = ((".*", "float32"),)
    """Type that each frozen parameter is stored in: `float32` or `bfloat16`, half as large.

    Trained parameters and adapters are float32. Products are computed in `model.dtype` all the
    same. Initial weights of a wider type are rounded.
    """
    init_from: str = ""
    """Source of the initial weights; empty is from scratch.

    It is a stage of this run; the folder of a workdir (the last stage of its curriculum), of a
    stage or of an export; a released model's name; or `hf:FOLDER`, whose Hugging Face weights
    become a decoder's. Of a stage it is the last checkpoint.
    """
    init_part: str = ""
    """Parts of the source to load, separated by commas; empty loads every part.

    A part is a path in the model (`encoder`), or SOURCE:TARGET where the two paths differ
    (`backbone:encoder/backbone`).
    """
    init_parts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """More sources, each by the part to load from it: `{"encoder": "runs/one/stages/autoencoder"}`.

    Parts are as in `init_part`, sources as in `init_from`, whose parameters they replace.
    """
    memory: bool = True
    """False gives the decoder no memories: the control."""
    compat: tuple[str, ...] = ()
    """Quirks of the published code to reproduce (STAGE_QUIRKS)."""

    @property
    def sources(self) -> tuple["Source", ...]:
        """The sources of initial weights; a later one replaces parameters of those before it."""
        first = (Source("init_from", self.init_from, self.init_part),) if self.init_from else ()
        others = (
            Source(f"init_parts.{part}", path, part) for part, path in self.init_parts.items()
        )
        return (*first, *others)


class Source(NamedTuple):
    """A source of a stage's initial weights."""

    key: str
    """The setting of the stage that names it."""
    path: str
    """As `Stage.init_from`."""
    part: str
    """As `Stage.init_part`."""


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """An evaluation of every stage on held-out sequences."""

    kind: str
    """One of `memjax.evaluation.evaluators.KINDS`."""
    every: int = 0
    """Steps between two evaluations in training, the last step included, logged as metrics.

    0 evaluates the trained stage once, at the end of the run, for results.json.
    """
    examples: int = 64
    """Held-out sequences to evaluate on, at most; decoded chunks in kind `reading`."""


def usual_evaluators(every: int = 100, examples: int = 256) -> dict[str, Evaluator]:
    """Return validation losses while training, and accuracy and recall at the end of the run.

    Args:
      every: steps between two validations.
      examples: held-out sequences of the accuracy; recall uses a quarter of them.
    """
    return {
        "validation": Evaluator("validation", every=every),
        "accuracy": Evaluator("accuracy", examples=examples),
        "recall": Evaluator("recall", examples=max(1, examples // 4)),
    }


@dataclasses.dataclass(frozen=True)
class Config:
    """One run: data, model, optimizer, stages, controls, checkpoints and evaluators."""

    name: str = "memjax"
    """Name of the run in its results and in Weights & Biases."""
    seed: int = 0
    """Seed of initial weights, of the order of rows and of random draws in training."""
    data: Data = dataclasses.field(default_factory=Data)
    model: Model = dataclasses.field(default_factory=Model)
    mesh: Mesh = dataclasses.field(default_factory=Mesh)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    stages: Mapping[str, Stage] = dataclasses.field(default_factory=dict)
    curriculum: tuple[str, ...] = ()
    """Stages in the order they run; the last one's model is the run's result."""
    controls: tuple[str, ...] = ()
    """Stages trained for comparison, after the curriculum."""
    log_every: int = 10
    """Steps between two lines of metrics."""
    checkpoint_every: int = 100
    """Steps between two checkpoints."""
    checkpoint_minutes: float = 0.0
    """Minutes after which an additional checkpoint is written; 0 is never."""
    checkpoints_kept: int = 2
    """Latest checkpoints that are kept, the best one not counted."""
    checkpoint_best: str = ""
    """Metric on held-out rows, such as `next_token/nats`, whose best checkpoint is kept too.

    Higher is better for accuracies, lower for nats. `memjax.load(PATH, STAGE, "best")` opens it.
    """
    evaluators: Mapping[str, Evaluator] = dataclasses.field(default_factory=usual_evaluators)
    """Evaluations of every stage, by name."""
    wandb_project: str = ""
    """Project of Weights & Biases that metrics are sent to; empty is none."""

    @property
    def chunks(self) -> int:
        """C: chunks per row."""
        return self.data.sequence_length // self.model.chunk_length


def match_rules(rules: Rules, path: str, key: str) -> Any:
    """Return the value of the first rule whose regex is found in `path`.

    Raises:
      ConfigError: no rule matches; `key` names the setting that holds the rules.
    """
    for pattern, value in rules:
        if re.search(pattern, path):
            return value
    raise ConfigError(
        f"{key}: no rule matches parameter {path!r}; add a rule for it, or end the list with"
        " ('.*', ...)"
    )
