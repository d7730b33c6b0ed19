"""Every setting of a run, as frozen dataclasses, and every check on them.

A config file (`configs/*.py`) builds a `Config` and hands it to ml_collections by `to_config_dict`; the command line
changes single keys of that (`--config.data.corpus=PATH`); `from_config_dict` checks the result and freezes it again. What runs is
always the frozen, checked form. Errors name the key as the command line spells it.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping
from typing import Any

import ml_collections

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
OBJECTIVES = {"autoencoder": ("reconstruction",), "memory_model": ("next_token", "copy", "blank_copy")}
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
    """Entries of the sentencepiece vocabulary, the 5 reserved ids and the 256 bytes included."""
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
    """Stage of this run, or a workdir's stage folder on disk, whose last checkpoint gives the weights; empty is from scratch."""
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


UNCHECKED_ON_RESUME = frozenset(
    {"log_every", "checkpoints_kept", "evaluate_every", "evaluation_rows", "recall_rows", "passages", "wandb_project", "name"}
)
"""Top-level keys a run may change when it goes on: they touch no weight and no batch."""


def to_config_dict(config: Config) -> ml_collections.ConfigDict:
    """The config as an ml_collections.ConfigDict, for flags to override."""
    tree = dataclasses.asdict(config)
    # Objectives are added and removed freely; every other key is fixed by the dataclasses.
    return ml_collections.ConfigDict(tree, convert_dict=True)


def from_config_dict(tree: Mapping[str, Any]) -> Config:
    """Checks a config tree and freezes it.

    Raises:
      ConfigError: a key is unknown, of the wrong type, or at odds with another.
    """
    if isinstance(tree, ml_collections.ConfigDict):
        tree = tree.to_dict()
    config = _build(Config, tree, "")
    check(config)
    return config


def to_json(config: Config) -> str:
    """The resolved config as JSON text, keys sorted."""
    return json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> Config:
    """The inverse of `to_json`."""
    return from_config_dict(json.loads(text))


def differences(ours: Config, theirs: Config) -> list[str]:
    """Keys whose values differ and that matter to what is computed, as `key: ours, theirs`."""
    flat_ours, flat_theirs = _flatten(dataclasses.asdict(ours)), _flatten(dataclasses.asdict(theirs))
    return [
        f"{key}: {flat_ours.get(key, 'absent')!r} now, {flat_theirs.get(key, 'absent')!r} there"
        for key in sorted(flat_ours.keys() | flat_theirs.keys())
        if key.split(".")[0] not in UNCHECKED_ON_RESUME and flat_ours.get(key) != flat_theirs.get(key)
    ]


def match_rules(rules: Rules, path: str, key: str) -> Any:
    """Value of the first rule whose regex is found in `path`.

    Raises:
      ConfigError: no rule matches; `key` names the setting that holds the rules.
    """
    for pattern, value in rules:
        if re.search(pattern, path):
            return value
    raise ConfigError(f"{key}: no rule matches parameter {path!r}; add a rule for it, or end the list with ('.*', ...)")


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, Mapping):
        return {k: v for name, sub in tree.items() for k, v in _flatten(sub, f"{prefix}.{name}" if prefix else name).items()}
    return {prefix: _tuples(tree)}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


_NESTED = {"data": Data, "model": Model, "optimizer": Optimizer, "encoder": Backbone, "decoder": Backbone, "reconstructor": Backbone}


def _build(kind: type, tree: Mapping[str, Any], prefix: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    built: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"the keys there are {', '.join(sorted(fields))}"
            raise ConfigError(f"config.{key} is not a setting; {hint}")
        if name in _NESTED:
            built[name] = _build(_NESTED[name], value, f"{key}.")
        elif name == "stages":
            built[name] = {stage: _build(Stage, sub, f"{key}.{stage}.") for stage, sub in value.items()}
        elif name == "objectives":
            built[name] = {objective: _number(weight, f"{key}.{objective}") for objective, weight in value.items()}
        else:
            built[name] = _typed(value, fields[name].type, key)
    return kind(**built)


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"config.{key}={value!r} must be a number")
    return float(value)


def _typed(value: Any, annotation: Any, key: str) -> Any:
    """`value` as the field's declared type, or an error that names the key."""
    if annotation == "float":
        return _number(value, key)
    if annotation in ("Rules", "tuple[str, ...]"):
        return _rules(value, key) if annotation == "Rules" else _names(value, key)
    kinds = {"int": int, "str": str, "bool": bool}
    if type(value) is not kinds[annotation]:
        raise ConfigError(f"config.{key}={value!r} must be of type {annotation}, not {type(value).__name__}")
    return value


def _names(value: Any, key: str) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
        raise ConfigError(f"config.{key}={value!r} must be a tuple of names")
    return tuple(value)


def _rules(value: Any, key: str) -> Rules:
    rules = _tuples(value)
    if not isinstance(rules, tuple) or not all(isinstance(r, tuple) and len(r) == 2 and isinstance(r[0], str) for r in rules):
        raise ConfigError(f"config.{key}={value!r} must be a tuple of (path regex, value) pairs")
    for pattern, _ in rules:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"config.{key}: {pattern!r} is not a regular expression ({error})") from error
    return rules


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _one_of(value: str, allowed: tuple[str, ...], key: str) -> None:
    _require(value in allowed, f"config.{key}={value!r} is not known; it can be {', '.join(allowed)}")


def _positive(owner: Any, prefix: str, *names: str) -> None:
    for name in names:
        _require(getattr(owner, name) > 0, f"config.{prefix}{name}={getattr(owner, name)} must be greater than 0")


def _divisors_near(total: int, wanted: int) -> str:
    divisors = [d for d in range(2, total + 1) if total % d == 0 and d <= total // 2]
    return ", ".join(str(d) for d in sorted(sorted(divisors, key=lambda d: abs(d - wanted))[:3])) or "no length"


def check(config: Config) -> None:
    """Raises ConfigError for the first impossible setting."""
    data, model = config.data, config.model
    _positive(config, "", "log_every", "checkpoint_every", "checkpoints_kept", "evaluate_every", "evaluation_rows", "recall_rows")
    _positive(data, "data.", "row_tokens")
    _require(
        data.vocabulary >= 300,
        f"config.data.vocabulary={data.vocabulary} leaves no room for words beside 256 bytes and 6 reserved ids; use 300 or more",
    )
    _require(data.vocabulary <= 65536, f"config.data.vocabulary={data.vocabulary} does not fit the rows' 16 bits; use at most 65536")
    _require(
        0 < data.validation_share < 1, f"config.data.validation_share={data.validation_share} must lie strictly between 0 and 1"
    )
    _check_model(model, data)
    _check_optimizer(config.optimizer)
    _check_stages(config)


def _check_model(model: Model, data: Data) -> None:
    _positive(model, "model.", "chunk_length", "vectors")
    _require(
        data.row_tokens % model.chunk_length == 0 and data.row_tokens >= 2 * model.chunk_length,
        f"config.model.chunk_length={model.chunk_length} does not divide config.data.row_tokens={data.row_tokens} into two chunks"
        f" or more; for rows of {data.row_tokens} use {_divisors_near(data.row_tokens, model.chunk_length)}",
    )
    _one_of(model.readout, READOUTS, "model.readout")
    _one_of(model.expansion, EXPANSIONS, "model.expansion")
    _one_of(model.layout, LAYOUTS, "model.layout")
    _one_of(model.dtype, DTYPES, "model.dtype")
    _one_of(model.remat, REMAT_POLICIES, "model.remat")
    _require(
        model.vectors == 1 or model.readout == "memory_tokens",
        f"config.model.vectors={model.vectors} needs config.model.readout='memory_tokens': one position gives one vector",
    )
    _require(
        0 <= model.bottleneck <= model.encoder.width,
        f"config.model.bottleneck={model.bottleneck} must lie between 0 (none) and the encoder's width {model.encoder.width}",
    )
    _require(
        model.layout == "fixed" or model.decoder.kind == "transformer",
        "config.model.layout='variable' needs a transformer decoder: a mixer's weights belong to positions; use 'fixed'",
    )
    for part in ("encoder", "decoder", "reconstructor"):
        _check_backbone(getattr(model, part), f"model.{part}.")
    _require(
        model.expansion != "unroll" or model.reconstructor.width % 2 == 0,
        f"config.model.reconstructor.width={model.reconstructor.width} must be even for config.model.expansion='unroll'",
    )


def _check_backbone(backbone: Backbone, prefix: str) -> None:
    _one_of(backbone.kind, BACKBONES, f"{prefix}kind")
    _one_of(backbone.mlp, MLPS, f"{prefix}mlp")
    _one_of(backbone.norm, NORMS, f"{prefix}norm")
    _positive(backbone, prefix, "width", "layers", "mlp_ratio", "kernel")
    width, heads, kv_heads = backbone.width, backbone.heads, backbone.kv_heads
    if backbone.kind == "mixer":
        _require(kv_heads == 0, f"config.{prefix}kv_heads={kv_heads} has no meaning in a mixer; leave it 0")
        _require(heads >= 0, f"config.{prefix}heads={heads} must be 0 (flat) or more")
        if heads == 0:
            _require(not backbone.output_gate, f"config.{prefix}output_gate needs heads: flat mixing has no output projection")
            return
    else:
        _require(backbone.kernel == 1, f"config.{prefix}kernel={backbone.kernel} has no meaning in a transformer; leave it 1")
        _require(heads > 0, f"config.{prefix}heads={heads} must be greater than 0 in a transformer")
        _require(
            kv_heads >= 0 and (kv_heads == 0 or heads % kv_heads == 0),
            f"config.{prefix}kv_heads={kv_heads} must divide config.{prefix}heads={heads}",
        )
    _require(
        width % heads == 0,
        f"config.{prefix}heads={heads} does not divide config.{prefix}width={width}; use {_divisors_near(width, heads)}",
    )
    if backbone.kind == "transformer":
        _require(
            (width // heads) % 2 == 0,
            f"config.{prefix}heads={heads} gives heads of odd width {width // heads}; rotary positions need an even one",
        )


def _check_optimizer(optimizer: Optimizer) -> None:
    for _, name in optimizer.rules:
        _one_of(name, OPTIMIZERS, "optimizer.rules")
    for key in ("rate_rules", "decay_rules"):
        for pattern, value in getattr(optimizer, key):
            _number(value, f"optimizer.{key}[{pattern!r}]")
    _require(optimizer.clip_norm >= 0, f"config.optimizer.clip_norm={optimizer.clip_norm} must be 0 (none) or more")


def _check_stages(config: Config) -> None:
    order = config.curriculum + config.controls
    _require(bool(config.curriculum), "config.curriculum is empty; name at least one of config.stages")
    for key in ("curriculum", "controls"):
        for name in getattr(config, key):
            _require(
                name in config.stages, f"config.{key} names {name!r}, which is not one of config.stages: {', '.join(config.stages)}"
            )
    _require(len(set(order)) == len(order), "config.curriculum and config.controls must not name a stage twice")
    unused = sorted(set(config.stages) - set(order))
    _require(not unused, f"config.stages.{unused[0] if unused else ''} is in neither config.curriculum nor config.controls")
    for position, name in enumerate(order):
        _check_stage(config.stages[name], f"stages.{name}.", order[:position])


def _check_stage(stage: Stage, prefix: str, earlier: tuple[str, ...]) -> None:
    _one_of(stage.family, FAMILIES, f"{prefix}family")
    _one_of(stage.decay, DECAYS, f"{prefix}decay")
    _positive(stage, prefix, "steps", "rows", "microbatches", "learning_rate")
    _require(0 <= stage.final_rate <= 1, f"config.{prefix}final_rate={stage.final_rate} must lie between 0 and 1")
    _require(
        0 <= stage.warmup_steps <= stage.steps,
        f"config.{prefix}warmup_steps={stage.warmup_steps} must lie between 0 and config.{prefix}steps={stage.steps}",
    )
    _require(
        stage.rows % stage.microbatches == 0,
        f"config.{prefix}microbatches={stage.microbatches} does not divide config.{prefix}rows={stage.rows}",
    )
    _require(bool(stage.objectives), f"config.{prefix}objectives is empty; give at least one of {OBJECTIVES[stage.family]}")
    for objective, weight in stage.objectives.items():
        _one_of(objective, OBJECTIVES[stage.family], f"{prefix}objectives")
        _require(weight > 0, f"config.{prefix}objectives.{objective}={weight} must be greater than 0; leave the objective out instead")
    for pattern, value in stage.trainable:
        _require(isinstance(value, bool), f"config.{prefix}trainable[{pattern!r}]={value!r} must be True or False")
    _require(not stage.init_part or bool(stage.init_from), f"config.{prefix}init_part needs config.{prefix}init_from")
    _require(
        not stage.init_from or stage.init_from in earlier or "/" in stage.init_from,
        f"config.{prefix}init_from={stage.init_from!r} is neither an earlier stage ({', '.join(earlier) or 'none'}) nor a folder path",
    )
