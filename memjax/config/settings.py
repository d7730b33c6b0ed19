"""Every setting of a run is a field of one of these frozen dataclasses.

A variant of an experiment is another config file, not another setting.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from memjax.config.choices import FEATURES, SHARDING, Rules
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
class Backbone:
    """A stack of identical blocks, [B, T, D] to [B, T, D]."""

    kind: str = "transformer"
    """A kind of mixing over positions (memjax/layers/backbone.py)."""
    width: int = 128
    """D: channels of a position, between blocks."""
    layers: int = 4
    """Number of blocks."""
    heads: int = 4
    """Attention heads or mixer heads; 0 in a mixer is flat mixing without projections (Badger 2026,
    mixers)."""
    kv_heads: int = 0
    """Key and value heads of grouped-query attention; 0 is as many as `heads`."""
    channel_kernel: int = 1
    """Width of the mixer's convolution over channels."""
    mlp: str = "swiglu"
    """Channel MLP: `swiglu` (gated), or two matrices around `gelu` or `silu`."""
    mlp_ratio: float = 4.0
    """Hidden width of the channel MLP as a multiple of the width."""
    norm: str = "rms"
    """Norm before token mixing and before the channel MLP: `rms` or `layer`."""
    final_norm: bool = True
    """Normalise the output of the last block too."""
    output_gate: bool = False
    """Multiply token mixing's output by a linear function of its input, before the projection."""
    causal: bool = True
    """True restricts a position to itself and earlier ones."""
    decay_length: float = 0.0
    """Positions over which a repeat mixer decays by its learned factor in [0.9, 1]; 0 is none."""
    head_dim: int = 0
    """Channels per attention head, an even number; 0 is width // heads."""
    qk_norm: bool = False
    """Normalise the queries and keys of every head before their rotation."""
    attention_bias: bool = False
    """Add a learned vector to queries, keys and values."""
    norm_eps: float = 0.0
    """Term added to the variance in every norm; 0 is the default: 1e-6 (rms) or 1e-5 (layer)."""
    features: tuple[str, ...] = ()
    """Parts of the reading decoder that a transformer has (FEATURES)."""
    place_heads: int = 0
    """Heads that rotate by the place of their chunk in the text, not by tokens (layout `text`).

    A memory is at distance 0 of all tokens of its chunk (position coupling, arXiv 2405.20671). A
    learned bias of queries and of the keys of memories makes these heads read it from the start.
    """
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    rope_scaling: tuple[float, ...] = ()
    """Frequency scaling of Llama 3.1: (factor, low, high, positions), or empty for none.

    The factor slows rotations with a period above positions / low. Rotations with a period below
    positions / high stay unchanged. Between the bounds, the factor is interpolated.
    """
    tie_embeddings: bool = False
    """Use the decoder's token table as its output head too."""

    @property
    def sigmoid_gate(self) -> bool:
        """True with `sigmoid_gate` among the features."""
        return "sigmoid_gate" in self.features

    @property
    def log_scale(self) -> bool:
        """True with `log_scale` among the features."""
        return "log_scale" in self.features

    @property
    def rotary_values(self) -> bool:
        """True with `rotary_values` among the features."""
        return "rotary_values" in self.features

    @property
    def blind_memories(self) -> bool:
        """True with `blind_memories` among the features."""
        return "blind_memories" in self.features

    @property
    def zero_outputs(self) -> bool:
        """True with `zero_outputs` among the features."""
        return "zero_outputs" in self.features

    @property
    def constant_addresses(self) -> bool:
        """True with `constant_addresses` among the features."""
        return "constant_addresses" in self.features

    @property
    def attention_head_dim(self) -> int:
        """E: channels per attention head."""
        return self.head_dim or self.width // max(self.heads, 1)

    @property
    def attention_dim(self) -> int:
        """Channels of all attention heads together."""
        return self.heads * self.attention_head_dim

    @property
    def epsilon(self) -> float:
        """Term added to the variance in every norm, defaults resolved."""
        return self.norm_eps or {"rms": 1e-6, "layer": 1e-5}[self.norm]

    @property
    def hidden_width(self) -> int:
        """F: channels between the matrices of the channel MLP."""
        return int(self.width * self.mlp_ratio)


@dataclasses.dataclass(frozen=True)
class Model:
    """Settings of the encoder, the decoder that reads its memories, and the reconstructor.

    The reconstructor is the decoder that trains the encoder as an autoencoder.
    """

    chunk_length: int = 32
    """L: tokens per chunk."""
    memory_vectors: int = 1
    """K: vectors per chunk."""
    readout: str = "last"
    """Position of the memory in the encoder's output.

    `memory_tokens` appends K learned tokens, whose outputs are the memory.
    """
    bottleneck: int = 0
    """Width of the memory between two linear maps, down and up; 0 is none."""
    expansion: str = "unroll"
    """Map from one vector to L positions in the autoencoder."""
    layout: str = "fixed"
    """Positions in the decoder: a chunk's tokens stand after all slots (fixed) or the filled ones
    (variable), or memories and tokens stand where they do in the text (text).

    `text` has no last position: a decoder reads as many memories as `max_memories`.
    """
    max_memories: int = 65_536
    """Memories that a decoder of layout `text` keeps of a text, at most."""
    token_positions: bool = True
    """Learned position of the token in its chunk, in the decoder."""
    chunk_positions: bool = True
    """Learned position of the chunk in its row, in the decoder, on tokens and on slots."""
    task_embedding: bool = True
    """Learned vector that marks the decoder's task: to predict, to retain or to recall."""
    memory_injection: str = "token"
    """Place of an oracle's memory: a first token, beside every embedding, or added to each."""
    noise: float = 0.0
    """q: uniform noise in [-q, q) on the bottleneck in training.

    Memories of such an encoder tolerate quantisation.
    """
    bptt_chunks: int = 0
    """Chunks after which recurrent memory detaches its state; 0 is never.

    The gradient of a loss reaches at most as many chunks, its own included: 1 trains no memory.
    """
    compat: tuple[str, ...] = ()
    """Quirks of the published code to reproduce (MODEL_QUIRKS)."""
    dtype: str = "float32"
    """Type of matrix products.

    Trained parameters, the residual stream, norms, softmax and losses are always float32.
    """
    attention: str = "auto"
    """Implementation: `xla`, `splash` (a TPU kernel that never stores the scores), or `auto`.

    `auto` uses splash on a TPU for 256 positions or more and heads up to 256 wide.
    """
    remat: str = "none"
    """Values that a block keeps for the backward pass: all (`none`), or those of a policy.

    A policy is a name in jax.checkpoint_policies.
    """
    encoder: Backbone = dataclasses.field(default_factory=lambda: Backbone(kind="mixer"))
    """Stack over the tokens of one chunk; by default a mixer."""
    decoder: Backbone = dataclasses.field(default_factory=lambda: Backbone(output_gate=True))
    """Stack over memories and tokens; by default a transformer with an output gate."""
    reconstructor: Backbone = dataclasses.field(default_factory=lambda: Backbone(kind="mixer"))
    """Stack from one chunk's memory to its tokens; by default a mixer."""


def reading(model: Model) -> Model:
    """Return a model whose decoder reads any number of memories by their places in the text."""
    decoder = dataclasses.replace(
        model.decoder,
        output_gate=True,
        qk_norm=True,
        place_heads=model.decoder.heads // 2,
        features=FEATURES,
    )
    return dataclasses.replace(model, layout="text", chunk_positions=False, decoder=decoder)


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
    temperature: float = 0.02
    """Divisor of cosine similarities in retrieval."""
    query_tokens: int = 7
    """Tokens of a passage that form its query in n-gram and n-bag retrieval."""
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
    compilation_cache: bool = False
    """Keep compiled programs in the workdir, or in its bucket, for quick restarts."""

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
