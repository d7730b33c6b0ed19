"""Every check on a setting. Errors name the key as the command line spells it, what is wrong and what would be right."""

from __future__ import annotations

from typing import Any

from memjax.config.readers import PREDICTORS, WITH_ENCODER, check_readers
from memjax.config.settings import (
    ATTENTIONS,
    BACKBONES,
    COMBINATIONS,
    DECAYS,
    DTYPES,
    EXPANSIONS,
    FAMILIES,
    LAYOUTS,
    MLPS,
    MODEL_QUIRKS,
    NORMS,
    OBJECTIVES,
    OPTIMIZERS,
    PRETRAINED,
    READOUTS,
    REGRESSIONS,
    REMAT_POLICIES,
    REPEATS,
    ROWS,
    STAGE_QUIRKS,
    WEIGHTINGS,
    Backbone,
    Config,
    ConfigError,
    Data,
    Mesh,
    Model,
    Optimizer,
    Stage,
)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _one_of(value: str, allowed: tuple[str, ...], key: str) -> None:
    _require(value in allowed, f"config.{key}={value!r} is not known; it can be {', '.join(allowed)}")


def _positive(owner: Any, prefix: str, *names: str) -> None:
    for name in names:
        _require(getattr(owner, name) > 0, f"config.{prefix}{name}={getattr(owner, name)} must be greater than 0")


def _nearest(good: list[int], wanted: int, otherwise: str) -> str:
    """The up to three of `good` that are nearest to `wanted`, as words."""
    return ", ".join(map(str, sorted(sorted(good, key=lambda n: abs(n - wanted))[:3]))) or otherwise


def _divisors_near(total: int, wanted: int) -> str:
    return _nearest([d for d in range(2, total // 2 + 1) if total % d == 0], wanted, "no length")


def check(config: Config) -> None:
    """Raises ConfigError for the first impossible setting."""
    data, model = config.data, config.model
    _require(config.seed >= 0, f"config.seed={config.seed} must be 0 or more")
    _positive(config, "", "log_every", "checkpoint_every", "checkpoints_kept", "evaluate_every", "evaluation_rows")
    _positive(data, "data.", "row_tokens")
    _require(
        data.vocabulary >= 300 or not data.corpus or bool(data.tokenizer),
        f"config.data.vocabulary={data.vocabulary} leaves no room for words beside 256 bytes and 6 reserved ids; use 300 or more",
    )
    _require(
        data.vocabulary > 512 or data.tokenizer != "byte_level",
        f"config.data.vocabulary={data.vocabulary} leaves no room for words beside 256 bytes and the 256 reserved ids of"
        " config.data.tokenizer='byte_level'; use more than 512",
    )
    _positive(data, "data.", "vocabulary")
    _one_of(data.rows, tuple(ROWS), "data.rows")
    _require(
        0 < data.validation_share < 1, f"config.data.validation_share={data.validation_share} must lie strictly between 0 and 1"
    )
    _require(config.checkpoint_minutes >= 0, f"config.checkpoint_minutes={config.checkpoint_minutes} must be 0 (never) or more")
    if config.checkpoint_best:
        objectives = sorted({name for stage in config.stages.values() for name in stage.objectives} - {*REGRESSIONS})
        numbers = tuple(f"{name}/{kind}" for name in objectives for kind in ("nats", "accuracy"))
        _one_of(config.checkpoint_best, numbers, "checkpoint_best")
    families = {stage.family for stage in config.stages.values()}
    _check_model(model, data, families)
    _check_mesh(config.mesh)
    _check_optimizer(config.optimizer)
    _check_stages(config)
    check_readers(config)


MESH_AXES = ("data", "fsdp", "tensor")
UNTIED = {"encoder": WITH_ENCODER, "decoder": ("oracle", "recurrent_memory"), "reconstructor": ("autoencoder",)}
"""Families that have a stack and no head that can be its token table."""
CHUNK_READERS = frozenset({"memory_model", "recurrent_memory", "ranker"})
"""Families whose rows need two chunks or more."""


def _check_model(model: Model, data: Data, families: set[str]) -> None:
    _positive(model, "model.", "chunk_length", "vectors")
    least = 2 if families & CHUNK_READERS else 1
    _require(
        data.row_tokens % model.chunk_length == 0 and data.row_tokens >= least * model.chunk_length,
        f"config.model.chunk_length={model.chunk_length} does not divide config.data.row_tokens={data.row_tokens} into"
        f" {'two chunks or more' if least == 2 else 'chunks'}; for rows of {data.row_tokens} use"
        f" {_divisors_near(data.row_tokens, model.chunk_length)}",
    )
    _one_of(model.readout, READOUTS, "model.readout")
    _one_of(model.expansion, EXPANSIONS, "model.expansion")
    _one_of(model.layout, LAYOUTS, "model.layout")
    _one_of(model.dtype, DTYPES, "model.dtype")
    _one_of(model.attention, ATTENTIONS, "model.attention")
    _one_of(model.remat, REMAT_POLICIES, "model.remat")
    _one_of(model.combine, COMBINATIONS, "model.combine")
    for quirk in model.compat:
        _one_of(quirk, MODEL_QUIRKS, "model.compat")
    _require(
        not {"slots_of_ones", "slots_of_zeros"} <= set(model.compat),
        "config.model.compat names both slots_of_ones and slots_of_zeros; a slot without a memory holds one constant",
    )
    _require(
        model.vectors == 1 or "overwritten_write_slot" not in model.compat,
        f"config.model.vectors={model.vectors} must be 1 for config.model.compat's overwritten_write_slot",
    )
    _require(model.noise >= 0, f"config.model.noise={model.noise} must be 0 (none) or more")
    beside = model.vectors * (model.bottleneck or model.encoder.width)
    _require(
        "oracle" not in families or model.combine != "embedding" or model.decoder.width > beside,
        f"config.model.decoder.width={model.decoder.width} leaves no room for token embeddings beside a memory of {beside}, which"
        " config.model.combine='embedding' puts there; use a greater width",
    )
    _require(model.truncate >= 0, f"config.model.truncate={model.truncate} must be 0 (all chunks) or more")
    _require(
        model.vectors == 1 or model.readout == "memory_tokens" or not families & set(WITH_ENCODER),
        f"config.model.vectors={model.vectors} needs config.model.readout='memory_tokens': one position gives one vector",
    )
    _require(
        0 <= model.bottleneck <= model.encoder.width,
        f"config.model.bottleneck={model.bottleneck} must lie between 0 (none) and the encoder's width {model.encoder.width}",
    )
    _require(
        model.layout == "fixed" or model.decoder.kind == "transformer" or not families & {"memory_model"},
        "config.model.layout='variable' needs a transformer decoder: a mixer's weights belong to positions; use 'fixed'",
    )
    for part, readers in UNTIED.items():
        others = sorted(families.intersection(readers))
        _require(
            not getattr(model, part).tied_head or not others,
            f"config.model.{part}.pretrained names tied_head, which a stage of family {', '.join(others)} does not read; stages of family"
            " memory_model and causal_lm do, of config.model.decoder",
        )
    _require(
        model.expansion != "repeat" or model.vectors <= model.chunk_length,
        f"config.model.vectors={model.vectors} are more than the config.model.chunk_length={model.chunk_length} positions that"
        " config.model.expansion='repeat' lays them over",
    )
    _require(
        model.decoder.causal or not families & set(PREDICTORS),
        f"config.model.decoder.causal=False lets a stage of family {', '.join(sorted(families & set(PREDICTORS)))} read the tokens it is to"
        " predict; use True",
    )
    for part in ("encoder", "decoder", "reconstructor"):
        check_backbone(getattr(model, part), f"model.{part}.")
    _require(
        model.expansion != "unroll" or model.reconstructor.width % 2 == 0,
        f"config.model.reconstructor.width={model.reconstructor.width} must be even for config.model.expansion='unroll'",
    )


def _check_mesh(mesh: Mesh) -> None:
    sizes = {axis: getattr(mesh, axis) for axis in MESH_AXES}
    for axis, size in sizes.items():
        _require(size == -1 or size > 0, f"config.mesh.{axis}={size} must be a number of devices, or -1 for the rest of them")
    rest = [axis for axis, size in sizes.items() if size == -1]
    _require(
        len(rest) < 2,
        f"config.mesh.{rest[0] if rest else ''} and config.mesh.{rest[-1] if rest else ''} are both -1; one axis takes the rest",
    )
    for pattern, axes in mesh.rules:
        named = axes if isinstance(axes, tuple) else (0,)
        _require(
            all(axis is None or axis in sizes for axis in named)
            and len({*named} - {None}) == sum(axis is not None for axis in named),
            f"config.mesh.rules: {axes!r} of {pattern!r} must be a tuple of {', '.join(sizes)} (each once at most) or None, one for each of"
            " the last dimensions",
        )


def check_backbone(backbone: Backbone, prefix: str) -> None:
    """Raises ConfigError for the first impossible setting of a stack; `prefix` is its key and a point."""
    _one_of(backbone.kind, BACKBONES, f"{prefix}kind")
    _one_of(backbone.mlp, MLPS, f"{prefix}mlp")
    _one_of(backbone.norm, NORMS, f"{prefix}norm")
    _positive(backbone, prefix, "width", "layers", "mlp_ratio", "kernel")
    _require(
        backbone.hidden_width > 0,
        f"config.{prefix}mlp_ratio={backbone.mlp_ratio} leaves no hidden unit at config.{prefix}width={backbone.width}",
    )
    width, heads, kv_heads = backbone.width, backbone.heads, backbone.kv_heads
    repeats = backbone.kind in REPEATS
    _require(backbone.decay_length >= 0, f"config.{prefix}decay_length={backbone.decay_length} must be 0 (none) or more")
    _require(
        repeats or backbone.decay_length == 0,
        f"config.{prefix}decay_length={backbone.decay_length} has no meaning in a {backbone.kind}; leave it 0",
    )
    _require(
        backbone.causal or not repeats,
        f"config.{prefix}causal=False has no meaning in a {backbone.kind}, which carries a state forward",
    )
    _require(
        backbone.kind == "mixer" or backbone.kernel == 1,
        f"config.{prefix}kernel={backbone.kernel} has no meaning in a {backbone.kind}; leave it 1",
    )
    _require(
        backbone.kind == "transformer" or not backbone.pretrained,
        f"config.{prefix}pretrained has no meaning in a {backbone.kind}; leave it ()",
    )
    if backbone.kind == "mixer" or repeats:
        _require(kv_heads == 0, f"config.{prefix}kv_heads={kv_heads} has no meaning in a {backbone.kind}; leave it 0")
        _require(heads >= 0, f"config.{prefix}heads={heads} must be 0 (flat) or more")
        if heads == 0:
            _require(not backbone.output_gate, f"config.{prefix}output_gate needs heads: flat mixing has no output projection")
            return
    else:
        _require(heads > 0, f"config.{prefix}heads={heads} must be greater than 0 in a transformer")
        _require(
            kv_heads >= 0 and (kv_heads == 0 or heads % kv_heads == 0),
            f"config.{prefix}kv_heads={kv_heads} must divide config.{prefix}heads={heads}",
        )
    _require(
        backbone.kind != "mixed_repeat" or (heads % 2 == 0 and width % 2 == 0),
        f"config.{prefix}heads={heads} and config.{prefix}width={width} must be even in a mixed_repeat, half of which repeats rows and"
        " half columns",
    )
    if backbone.pretrained:
        _check_pretrained(backbone, f"{prefix}pretrained")
    if "head_width" in dict(backbone.pretrained):
        return
    multiple = 2 if backbone.kind == "transformer" else 1
    good = [n for n in range(1, width + 1) if width % (n * multiple) == 0]
    even = " into heads of even width, which rotary positions need" if multiple == 2 else ""
    _require(
        heads in good,
        f"config.{prefix}heads={heads} does not divide config.{prefix}width={width}{even}; use {_nearest(good, heads, 'another width')}",
    )


def _check_pretrained(backbone: Backbone, key: str) -> None:
    number: Any = lambda value: isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0  # noqa: E731
    for name, value in backbone.pretrained:
        _one_of(name, PRETRAINED, key)
        if name in ("query_key_norm", "tied_head"):
            good, wanted = isinstance(value, bool), "True or False"
        elif name == "head_width":
            good, wanted = type(value) is int and value > 0 and value % 2 == 0, "an even number: rotary positions turn pairs"
        elif name == "rotary_scaling":
            good = isinstance(value, tuple) and len(value) == 4 and all(map(number, value)) and value[1] < value[2]
            wanted = "(factor, low, high, positions), four numbers greater than 0 of which low is less than high"
        else:
            good, wanted = number(value), "a number greater than 0"
        _require(good, f"config.{key}: {name} is {value!r}; it must be {wanted}")
    names = [name for name, _ in backbone.pretrained]
    _require(len(set(names)) == len(names), f"config.{key} names {', '.join(names)}; each may be there once")


def _check_optimizer(optimizer: Optimizer) -> None:
    for _, name in optimizer.rules:
        _one_of(name, OPTIMIZERS, "optimizer.rules")
    for key in ("rate_rules", "decay_rules"):
        for pattern, value in getattr(optimizer, key):
            _require(
                isinstance(value, (int, float)) and not isinstance(value, bool),
                f"config.optimizer.{key}[{pattern!r}]={value!r} must be a number",
            )
            _require(value >= 0, f"config.optimizer.{key}[{pattern!r}]={value} must be 0 or more")
    for name in ("beta1", "beta2"):
        value = getattr(optimizer, name)
        _require(0 <= value < 1, f"config.optimizer.{name}={value} must be at least 0 and less than 1")
    _positive(optimizer, "optimizer.", "epsilon")
    _require(optimizer.clip_norm >= 0, f"config.optimizer.clip_norm={optimizer.clip_norm} must be 0 (none) or more")


def _check_stages(config: Config) -> None:
    order = config.curriculum + config.controls
    _require(bool(config.curriculum), "config.curriculum is empty; name at least one of config.stages")
    for key in ("curriculum", "controls"):
        for name in getattr(config, key):
            _require(
                name in config.stages,
                f"config.{key} names {name!r}, which is not one of config.stages: {', '.join(config.stages)}",
            )
    _require(len(set(order)) == len(order), "config.curriculum and config.controls must not name a stage twice")
    for position, name in enumerate(order):
        stage = config.stages[name]
        _check_stage(stage, f"stages.{name}.", order[:position])
        copied = [o for o in stage.objectives if o.endswith("copy")] if stage.family == "causal_lm" else []
        _require(
            not copied or config.data.row_tokens % 2 == 0,
            f"config.stages.{name}.objectives names {', '.join(copied)}, so config.data.row_tokens={config.data.row_tokens} must be even",
        )
        _check_retrieval(config, stage, f"config.stages.{name}")
        needs = [o for o in stage.objectives if o in (*WEIGHTINGS, *REGRESSIONS)]
        _require(
            not needs or bool(config.data.attributions),
            f"config.stages.{name}.objectives names {', '.join(needs)}, which needs config.data.attributions",
        )


def _check_retrieval(config: Config, stage: Stage, key: str) -> None:
    model = config.model
    asked = [o for o in stage.objectives if o.startswith(("ngram_", "nbag_"))]
    _require(
        not asked or stage.query_tokens <= model.chunk_length,
        f"{key}.query_tokens={stage.query_tokens} are more than a passage has: config.model.chunk_length={model.chunk_length}",
    )
    _require(
        "pair_retrieval" not in stage.objectives or config.chunks % 2 == 0,
        f"{key}.objectives names pair_retrieval, which needs an even number of chunks in a row, query and passage in turn;"
        f" there are {config.chunks}",
    )
    share = stage.rows // stage.microbatches
    passages = share * (config.chunks // 2 if "pair_retrieval" in stage.objectives else config.chunks)
    _require(
        stage.family != "retriever" or passages >= 2,
        f"{key}.rows={stage.rows} in {key}.microbatches={stage.microbatches} leave {passages} of the passages that a query is"
        " to tell apart in a microbatch; there must be two or more",
    )
    _require(
        stage.family != "ranker" or (model.decoder.kind == "transformer" and model.decoder.final_norm),
        f"{key}.family='ranker' needs config.model.decoder.kind='transformer' and config.model.decoder.final_norm=True",
    )


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
    for quirk in stage.compat:
        _one_of(quirk, STAGE_QUIRKS, f"{prefix}compat")
    _require(
        "overwritten_delimiter" not in stage.compat or "unscored_first_tokens" in stage.compat,
        f"config.{prefix}compat: overwritten_delimiter needs unscored_first_tokens, the published form of a chunk's inputs",
    )
    _positive(stage, prefix, "temperature", "query_tokens")
    for objective, weight in stage.objectives.items():
        _one_of(objective, OBJECTIVES[stage.family], f"{prefix}objectives")
        _require(
            weight > 0,
            f"config.{prefix}objectives.{objective}={weight} must be greater than 0; leave the objective out instead",
        )
    for pattern, value in stage.trainable:
        _require(
            isinstance(value, bool) or (type(value) is int and value > 0),
            f"config.{prefix}trainable[{pattern!r}]={value!r} must be True, False or a rank greater than 0",
        )
    _require(
        stage.memory or stage.family == "memory_model",
        f"config.{prefix}memory=False has no meaning in a stage of family {stage.family}",
    )
    _require(not stage.init_part or bool(stage.init_from), f"config.{prefix}init_part needs config.{prefix}init_from")
    _require(
        not stage.init_from or stage.init_from in earlier or "/" in stage.init_from or stage.init_from.startswith("hf:"),
        f"config.{prefix}init_from={stage.init_from!r} is neither an earlier stage ({', '.join(earlier) or 'none'}) nor a folder path",
    )
