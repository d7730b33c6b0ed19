"""Every setting of a run, as frozen dataclasses. A variant of an experiment is another config file, not another setting."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

BACKBONES = ("transformer", "mixer")
NORMS = ("rms", "layer")
MLPS = ("swiglu", "gelu")
# Read-out, expansion and layout: how a memory leaves the encoder and enters a decoder (models/).
READOUTS = ("last", "second_to_last", "memory_tokens")
EXPANSIONS = ("unroll", "repeat")
LAYOUTS = ("fixed", "variable")
DTYPES = ("float32", "bfloat16")
REMAT_POLICIES = ("none", "nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable")
FAMILIES = ("autoencoder", "memory_model")
OBJECTIVES = {"autoencoder": ("reconstruction",), "memory_model": ("next_token", "copy", "plain_copy", "blank_copy")}
DECAYS = ("cosine", "linear", "constant")
OPTIMIZERS = ("adamw", "muon")

Rules = tuple[tuple[str, Any], ...]
"""Ordered (path regex, value) pairs: the first that matches a parameter's path decides."""


class ConfigError(ValueError):
    """A setting is unknown, impossible or at odds with another; the message names the key."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Where the text comes from and how it becomes rows of tokens."""

    corpus: str = "python-docs"
    """`python-docs` (the prose inside every CPython) or a path: .txt, .txt.gz, .jsonl, .jsonl.gz, a glob or a folder."""
    text_field: str = "text"
    """The field of a JSON line that holds the document."""
    vocabulary: int = 1024
    """Entries of the sentencepiece vocabulary, the 6 reserved ids and the 256 bytes included."""
    row_tokens: int = 128
    """N: tokens in a row, a whole number of chunks."""
    validation_share: float = 0.1
    """Share of the documents, picked by a hash of their text, that is held out."""


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A stack of identical blocks, [B, T, D] to [B, T, D]."""

    kind: str = "transformer"
    width: int = 128
    layers: int = 4
    heads: int = 4
    """Attention heads or mixer heads; 0 in a mixer is flat mixing without projections (spec of Badger 2026, mixers)."""
    kv_heads: int = 0
    """Key and value heads of grouped-query attention; 0 is as many as `heads`."""
    kernel: int = 1
    """Width of the mixer's convolution over channels."""
    mlp: str = "swiglu"
    mlp_ratio: float = 4.0
    """Hidden width of the channel MLP as a multiple of the width."""
    norm: str = "rms"
    final_norm: bool = True
    output_gate: bool = False
    """Multiply what token mixing returns by a linear function of its input before the output projection."""


@dataclasses.dataclass(frozen=True)
class Model:
    """The encoder, the decoder that reads its memories, and the decoder that trains it as an autoencoder."""

    chunk_length: int = 32
    """L: tokens in a chunk."""
    vectors: int = 1
    """K: vectors a chunk becomes."""
    readout: str = "last"
    """Position the memory is read at; `memory_tokens` appends K learned tokens and reads those."""
    bottleneck: int = 0
    """Width the memory is squeezed through (linear, down and up); 0 is none."""
    expansion: str = "unroll"
    """How the autoencoder lays one vector out over L positions."""
    layout: str = "fixed"
    """Whether a chunk's tokens always start after all slots (fixed) or right after the filled ones (variable)."""
    token_positions: bool = True
    """Learned position of the token in its chunk, in the decoder."""
    chunk_positions: bool = True
    """Learned position of the chunk in its row, in the decoder, on tokens and on slots."""
    task_mark: bool = True
    """Learned vector that tells the decoder what is asked: to predict or to retain."""
    dtype: str = "float32"
    """What matrix products compute in; parameters, norms, softmax and losses are float32 always."""
    remat: str = "none"
    """What a block keeps for the backward pass: everything (none), or what the jax.checkpoint_policies of that name saves."""
    encoder: Backbone = dataclasses.field(default_factory=lambda: Backbone(kind="mixer"))
    decoder: Backbone = dataclasses.field(default_factory=lambda: Backbone(output_gate=True))
    reconstructor: Backbone = dataclasses.field(default_factory=lambda: Backbone(kind="mixer"))


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How a gradient becomes an update. Rates are a stage's; these are shared by all stages."""

    rules: Rules = ((".*", "adamw"),)
    """Which optimizer each parameter gets."""
    rate_rules: Rules = ((".*", 1.0),)
    """Factor on the stage's learning rate."""
    decay_rules: Rules = ((".*", 0.0),)
    """Decoupled weight decay."""
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    muon_momentum: float = 0.95
    clip_norm: float = 1.0
    """Global norm a gradient is clipped to; 0 is no clipping."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One training of one model: what is asked of it, for how long, what may move and where its weights come from."""

    family: str = "memory_model"
    objectives: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """Weight of each objective's mean loss (nats a token)."""
    steps: int = 100
    rows: int = 32
    """Rows in a batch, over all devices."""
    microbatches: int = 1
    """Parts a batch is run in, one after another; gradients are those of the whole batch."""
    learning_rate: float = 1e-3
    warmup_steps: int = 20
    decay: str = "cosine"
    final_rate: float = 0.0
    """Learning rate at the last step as a share of `learning_rate`."""
    trainable: Rules = ((".*", True),)
    """Which parameters move. The others are split off before differentiation."""
    init_from: str = ""
    """Stage of this run, or a workdir's stage folder on disk, whose last checkpoint gives the weights; empty is from
    scratch."""
    init_part: str = ""
    """Top-level part of the model that is taken (`encoder`); empty takes all."""
    memory: bool = True
    """False gives the decoder no memories: the control."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One run: data, model, stages, controls and how they are watched."""

    name: str = "memjax"
    seed: int = 0
    data: Data = dataclasses.field(default_factory=Data)
    model: Model = dataclasses.field(default_factory=Model)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    stages: Mapping[str, Stage] = dataclasses.field(default_factory=dict)
    curriculum: tuple[str, ...] = ()
    """Stages in the order they run; the last one's model is the run's result."""
    controls: tuple[str, ...] = ()
    """Stages trained for comparison, after the curriculum."""
    log_every: int = 10
    checkpoint_every: int = 100
    checkpoints_kept: int = 2
    evaluate_every: int = 100
    """Steps between two looks at held-out rows while training."""
    evaluation_rows: int = 256
    """Held-out rows of the final evaluation, at most."""
    recall_rows: int = 64
    """Held-out rows whose chunks are regenerated token by token, at most."""
    passages: int = 6
    """Held-out passages shown in the report."""
    wandb_project: str = ""

    @property
    def chunks(self) -> int:
        """C: chunks in a row."""
        return self.data.row_tokens // self.model.chunk_length


def match_rules(rules: Rules, path: str, key: str) -> Any:
    """Value of the first rule whose regex is found in `path`.

    Raises:
      ConfigError: no rule matches; `key` names the setting that holds the rules.
    """
    for pattern, value in rules:
        if re.search(pattern, path):
            return value
    raise ConfigError(f"{key}: no rule matches parameter {path!r}; add a rule for it, or end the list with ('.*', ...)")
