"""Every setting of a run, as frozen dataclasses. A variant of an experiment is another config file, not another setting."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

REPEATS = ("row_repeat", "column_repeat", "combined_repeat", "diagonal_repeat", "mixed_repeat")
"""Mixers whose matrix over positions is made of one or two repeated vectors, so that a step needs O(1) state (layers/repeat.py)."""
BACKBONES = ("transformer", "mixer", *REPEATS)
NORMS = ("rms", "layer")
MLPS = ("swiglu", "gelu", "silu")
# Read-out, expansion and layout: how a memory leaves the encoder and enters a decoder (models/).
READOUTS = ("last", "second_to_last", "memory_tokens")
EXPANSIONS = ("unroll", "repeat")
LAYOUTS = ("fixed", "variable")
COMBINATIONS = ("token", "embedding", "add")
DTYPES = ("float32", "bfloat16")
REMAT_POLICIES = ("none", "nothing_saveable", "dots_saveable", "dots_with_no_batch_dims_saveable")
WEIGHTINGS = (
    "complement_weighted",
    "ten_minus_weighted",
    "subtracted_weighted",
    "distance_weighted",
    "below_six_weighted",
)
"""Next-token losses weighed by an attribution of every token (objectives/entropy.py), in the order of their publication."""
REGRESSIONS = ("entropy_regression", "shifted_entropy_regression")
"""Estimates of an attribution, which only training rows have."""
OBJECTIVES: Mapping[str, tuple[str, ...]] = {
    "autoencoder": ("reconstruction", "random_reconstruction"),
    "memory_model": ("next_token", "copy", "plain_copy", "blank_copy"),
    "causal_lm": ("next_token", "plain_copy", "corrupted_copy", "unweighted_corrupted_copy", *WEIGHTINGS),
    "oracle": ("next_token",),
    "recurrent_memory": ("next_token",),
    "retriever": ("ngram_retrieval", "nbag_retrieval", "pair_retrieval"),
    "ranker": ("ngram_ranking", "nbag_ranking"),
    "entropy_regressor": REGRESSIONS,
}
"""What each family of models (models/) can be trained for."""
FAMILIES = tuple(OBJECTIVES)
MODEL_QUIRKS = (
    "slots_of_ones",
    "slots_of_zeros",
    "attended_padding",
    "overwritten_write_slot",
    "dense_mixing_gradient",
    "one_sided_noise",
    "residual_noise",
    "reference_init",
)
"""What the published PyTorch code does to its models and memjax does only when asked:

- `slots_of_ones`, `slots_of_zeros`: a memory model has C slots, not C - 1; a slot without a memory holds a constant and is attended;
- `attended_padding`: padding is read like text, in encoders and decoders;
- `overwritten_write_slot`: recurrent memory writes over each chunk's last token and starts from a constant, ones in a
  transformer and zeros in a mixer;
- `dense_mixing_gradient`: the dead triangle of mixing weights has a gradient, which counts in clipping;
- `one_sided_noise`: bottleneck noise is drawn from [0, 2q), not [-q, q);
- `residual_noise`: noise enters before the bottleneck and the clean memory is added after it (as one sentence describes it);
- `reference_init`: first weights as PyTorch and Hugging Face draw them (training/initialize.py).
"""
FUNCTION_QUIRKS = frozenset(MODEL_QUIRKS) - {"reference_init", "dense_mixing_gradient", "one_sided_noise"}
"""Those under which the same weights are another function."""
STAGE_QUIRKS = ("unscored_first_tokens", "chunk_means", "overwritten_delimiter", "untrained_layers")
"""What the published code does in training and memjax does only when asked:

- `unscored_first_tokens`: no token is inserted, and no chunk's first token is a target;
- `chunk_means`: a loss is the mean over chunks of the chunks' own means, over C even where chunks have no target;
- `overwritten_delimiter`: three delimiters stand in place of a copy's first three tokens, and its first two are no target;
- `untrained_layers`: weights of a shallower stack fill the first layers of a deeper one; the other layers and a final norm that the
  source lacks stay as initialised.
"""
ROWS: Mapping[str, tuple[str, str]] = {
    "packed": ("packed", "right"),
    "per_document": ("per_document", "right"),
    "per_document_left": ("per_document", "left"),
    "first_n": ("first_n", "right"),
    "first_n_left": ("first_n", "left"),
    "full_length_only": ("full_length_only", "right"),
}
"""How documents become rows of N tokens, and the side on which a row that a document does not fill is padded:

- `packed`: joined, with the id of a document's end between them, and cut;
- `per_document`: each is cut by itself, and its last row padded;
- `first_n`: a row of the first N tokens of each, padded (the published set-up's way); `full_length_only`: of those alone that have N.
"""
FULL_ROWS = ("packed", "full_length_only")
"""Those without padding."""
DECAYS = ("cosine", "linear", "constant")
ATTENTIONS = ("auto", "xla", "splash")
OPTIMIZERS = ("adamw", "muon")

Rules = tuple[tuple[str, Any], ...]
"""Ordered (path regex, value) pairs: the first that matches a parameter's path decides."""
FREEZING: Mapping[str, Rules] = {
    "trainable": ((".*", True),),
    "frozen_all": (("^encoder/", False), (".*", True)),
    "frozen_blocks": (("^encoder/backbone/", False), (".*", True)),
    "encoder_and_bridge": (("^(encoder|bridge)/", True), (".*", False)),
    "bridge_only": (("^bridge/", True), (".*", False)),
}
"""Rules for `trainable`: everything moves; the encoder is the function it was; its blocks stay and a new token table in front of them
is learned, as in the published code (`init_part="encoder/backbone"` leaves the table behind); the decoder stays, and what makes memories and
brings them to it moves; only what brings them to it moves."""
PRETRAINED = ("head_width", "query_key_norm", "norm_epsilon", "rotary_base", "rotary_scaling", "tied_head")
"""What `Backbone.pretrained` can name:

- `head_width`: of attention heads, which need not fill the width together;
- `query_key_norm`: True puts a norm on every head's queries and keys, before their rotation;
- `norm_epsilon`: of all norms of the stack;
- `rotary_base`: in place of 10,000;
- `rotary_scaling`: (factor, low, high, positions) of Llama 3.1: a rotation whose period is longer than positions / low is slowed down by
  the factor, one that is shorter than positions / high is as it is, and in between lies a mixture;
- `tied_head`: True lets a decoder's token table be its head too.
"""

SHARDING: Rules = (
    (r"/mix/(query|key|value|gate|in)/kernel$", ("fsdp", "tensor")),
    (r"/mix/out/kernel$", ("tensor", "fsdp")),
    (r"/mix/mixing$", ("tensor", None, None, None)),
    (r"/mlp/(gate|up)/kernel$", ("fsdp", "tensor")),
    (r"/mlp/down/kernel$", ("tensor", "fsdp")),
    (r"embed/embedding$", ("tensor", "fsdp")),
    (r"head/kernel$", ("fsdp", "tensor")),
    (r"(bridge|down|up|unroll_projection)/kernel$", ("fsdp", None)),
    (".*", ()),
)
"""Where parameters lie: the mesh axes of the last dimensions of every path. Products of two matrices are split so that what lies between
them needs no exchange; biases, norms and learned vectors are whole everywhere."""


class ConfigError(ValueError):
    """A setting is unknown, impossible or at odds with another; the message names the key."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Where the text comes from and how it becomes rows of tokens."""

    corpus: str = "python-docs"
    """`python-docs` (the prose inside every CPython); a file, glob or folder of .txt, .jsonl (also .gz, .zst), .parquet or .arrayrecord;
    `tfds:NAME/CONFIG`; `hf:OWNER/NAME:CONFIG` or `hf:FOLDER`; or several with weights, `0.7*ONE + 0.3*OTHER` (memjax/data/sources). Empty
    in a config of imported weights."""
    text_field: str = "text"
    """The field of a JSON line that holds the document."""
    vocabulary: int = 1024
    """Entries of the vocabulary, reserved ids and 256 bytes included; of a given one at least as many (rows of the token tables)."""
    tokenizer: str = ""
    """Whose ids: empty trains a sentencepiece vocabulary on the training split, `byte_level` the published set-up's kind, and a path (a
    tokenizer.model or tokenizer.json, or its folder) takes one that is there."""
    row_tokens: int = 128
    """N: tokens in a row, a whole number of chunks."""
    rows: str = "packed"
    """How documents become rows (ROWS)."""
    validation_share: float = 0.1
    """Share of the documents, picked by a hash of their text, that is held out."""
    skip_damaged: bool = False
    """Leaves damaged documents out, and counts them, where they would stop the preparation."""
    attributions: str = ""
    """File (.npy, float [rows, N]) with an attribution of every token of the training rows, for weighted next-token losses."""
    memories: str = ""
    """Folder with the memories of all rows, as `memjax encode-corpus` writes them, read in place of running a frozen encoder."""


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A stack of identical blocks, [B, T, D] to [B, T, D]."""

    kind: str = "transformer"
    width: int = 128
    layers: int = 4
    heads: int = 4
    """Attention heads or mixer heads; 0 in a mixer is flat mixing without projections (Badger 2026, mixers)."""
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
    causal: bool = True
    """Whether a position reads earlier ones only."""
    decay_length: float = 0.0
    """Positions over which a repeat mixer forgets by its learned factor, which lies in [0.9, 1]; 0 is no forgetting."""
    pretrained: Rules = ()
    """What a pretrained transformer has and ours has not, as (name of PRETRAINED, value) pairs; `interop.decoder_settings` reads them from a
    Hugging Face folder."""

    def _form(self, name: str, default: Any) -> Any:
        return dict(self.pretrained).get(name, default)

    @property
    def head_width(self) -> int:
        """E: channels of an attention head."""
        return self._form("head_width", self.width // max(self.heads, 1))

    @property
    def attended_width(self) -> int:
        """Channels of all attention heads together."""
        return self.heads * self.head_width

    @property
    def query_key_norm(self) -> bool:
        """Whether queries and keys are normalised, head by head."""
        return self._form("query_key_norm", False)

    @property
    def norm_epsilon(self) -> float:
        """What is added to a variance before its root."""
        return self._form("norm_epsilon", {"rms": 1e-6, "layer": 1e-5}[self.norm])

    @property
    def rotary_base(self) -> float:
        """Of which the frequencies of rotary positions are powers."""
        return self._form("rotary_base", 10_000.0)

    @property
    def rotary_scaling(self) -> tuple[float, ...]:
        """As PRETRAINED has it; empty is none."""
        return self._form("rotary_scaling", ())

    @property
    def tied_head(self) -> bool:
        """Whether the decoder's head is its token table."""
        return self._form("tied_head", False)

    @property
    def hidden_width(self) -> int:
        """F: channels between the matrices of the channel MLP."""
        return int(self.width * self.mlp_ratio)


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
    combine: str = "token"
    """How an oracle's decoder is given the memory: as a first token, beside every embedding, or added to every embedding."""
    noise: float = 0.0
    """q: uniform noise in [-q, q) on the bottleneck while training, so that memories survive quantisation."""
    truncate: int = 0
    """Chunks after which recurrent memory detaches its state: a loss reaches back through at most so many, its own included, so 1
    trains no memory; 0 is never."""
    compat: tuple[str, ...] = ()
    """Quirks of the published code to reproduce (MODEL_QUIRKS)."""
    dtype: str = "float32"
    """What matrix products compute in; parameters, sums between blocks, norms, softmax and losses are float32 always."""
    attention: str = "auto"
    """`xla` everywhere, `splash` (a TPU kernel that never holds the scores), or `auto`: splash on a TPU for 256 positions or
    more and heads up to 256 wide."""
    remat: str = "none"
    """What a block keeps for the backward pass: everything (none), or what the jax.checkpoint_policies of that name saves."""
    encoder: Backbone = dataclasses.field(default_factory=lambda: Backbone(kind="mixer"))
    decoder: Backbone = dataclasses.field(default_factory=lambda: Backbone(output_gate=True))
    reconstructor: Backbone = dataclasses.field(default_factory=lambda: Backbone(kind="mixer"))


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How the devices are laid out. One axis may be -1: as many devices as the others leave.

    Over several TPU slices the data axis spans them, and the others stay within one.
    """

    data: int = -1
    """Copies of the model, each with its share of a batch."""
    fsdp: int = 1
    """Devices a copy is split over that have their own share of a batch: parameters are gathered where they are used."""
    tensor: int = 1
    """Devices every matrix product is split over."""
    rules: Rules = SHARDING
    """Mesh axes of the last dimensions of every parameter; an axis that does not divide its dimension is left out."""


MESHES: Mapping[str, Mesh] = {"ddp": Mesh(), "fsdp": Mesh(data=1, fsdp=-1), "fsdp_tp": Mesh(data=1, fsdp=-1, tensor=4)}
"""The usual layouts: everything whole, parameters split, and products split too."""


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
    """Which parameters move: True, False, or a whole number r, with which a matrix of a block stays and a product of two matrices of rank r
    that is added to it moves (Hu et al. 2021, arXiv 2106.09685). What does not move is split off before differentiation."""
    init_from: str = ""
    """Stage of this run, or a workdir's stage folder on disk, whose last checkpoint gives the weights; `hf:FOLDER` for those of a Hugging
    Face folder, a decoder's; empty is from scratch."""
    init_part: str = ""
    """What is taken: a part of the model (`encoder`), SOURCE:TARGET where it stands elsewhere there (`backbone:encoder/backbone`), or
    several of them with commas; empty takes all that is there."""
    memory: bool = True
    """False gives the decoder no memories: the control."""
    temperature: float = 0.02
    """What cosine similarities are divided by in retrieval."""
    query_tokens: int = 7
    """Tokens of a passage that ask for it in n-gram and n-bag retrieval."""
    compat: tuple[str, ...] = ()
    """Quirks of the published code to reproduce (STAGE_QUIRKS)."""


@dataclasses.dataclass(frozen=True)
class Config:
    """One run: data, model, stages, controls and how they are watched."""

    name: str = "memjax"
    seed: int = 0
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
    checkpoint_every: int = 100
    """Steps between two checkpoints."""
    checkpoint_minutes: float = 0.0
    """Minutes after which one is written in between; 0 is never."""
    checkpoints_kept: int = 2
    """The latest that are kept, the best one apart."""
    checkpoint_best: str = ""
    """Number on held-out rows, such as `next_token/nats`, whose best checkpoint is kept too; accuracies are best high, nats low."""
    evaluate_every: int = 100
    """Steps between two looks at held-out rows while training."""
    evaluation_rows: int = 256
    """Held-out rows of the final evaluation, at most."""
    wandb_project: str = ""

    @property
    def recall_rows(self) -> int:
        """Held-out rows whose chunks are regenerated token by token, at most."""
        return max(1, self.evaluation_rows // 4)

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
