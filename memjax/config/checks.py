"""Every check on a setting.

Errors name the key as typed on the command line, the value, and the expected values.
"""

import re
from collections.abc import Mapping
from typing import Any

from memjax import released
from memjax.config.choices import (
    ATTENTIONS,
    DTYPES,
    EXPANSIONS,
    FEATURES,
    HUGGINGFACE,
    LAYOUTS,
    LR_SCHEDULES,
    MEMORY_INJECTIONS,
    MLPS,
    MODEL_QUIRKS,
    NORMS,
    OPTIMIZERS,
    PACKINGS,
    READOUTS,
    REMAT_POLICIES,
    REPEATS,
    STAGE_QUIRKS,
)
from memjax.config.model import Backbone, Model
from memjax.config.settings import Config, ConfigError, Data, Evaluator, Mesh, Optimizer, Stage

MESH_AXES = ("data", "fsdp", "tensor")
CHOICES = {
    Data: {"packing": tuple(PACKINGS)},
    Model: {
        "readout": READOUTS,
        "expansion": EXPANSIONS,
        "layout": LAYOUTS,
        "dtype": DTYPES,
        "attention": ATTENTIONS,
        "remat": REMAT_POLICIES,
        "memory_injection": MEMORY_INJECTIONS,
        "compat": MODEL_QUIRKS,
    },
    Backbone: {"mlp": MLPS, "norm": NORMS, "features": FEATURES},
    Stage: {"lr_schedule": LR_SCHEDULES, "compat": STAGE_QUIRKS},
}
"""Settings that are one of some words, or a tuple of them, by the class that holds them."""
_LARGE, _LENGTH, _COUNT = 2**31 - 1, 2**22, 2**16
"""The largest step, token of a row or entry of a vocabulary, and part of a model: more is a typing
error, or overflows. Checks count up to a length."""
_SMALL = 1e-30
"""The smallest term that keeps a float32 from division by 0."""
RANGES: Mapping[type, Mapping[str, tuple[float, float]]] = {
    Config: {
        "seed": (0, 2**32 - 1),
        **dict.fromkeys(("log_every", "checkpoint_every", "checkpoints_kept"), (1, _LARGE)),
        "checkpoint_minutes": (0, _LARGE),
    },
    Evaluator: {"every": (0, _LARGE), "examples": (1, _LARGE)},
    Data: dict.fromkeys(("sequence_length", "vocab_size"), (1, _LENGTH)),
    Model: {
        "chunk_length": (1, _LENGTH),
        "memory_vectors": (1, _COUNT),
        "noise": (0, 1000),
        "bptt_chunks": (0, _LENGTH),
        "max_memories": (1, _LENGTH),
    },
    Backbone: {
        **dict.fromkeys(("width", "layers", "channel_kernel"), (1, _COUNT)),
        **dict.fromkeys(("heads", "kv_heads", "head_dim", "place_heads"), (0, _COUNT)),
        "mlp_ratio": (_SMALL, _COUNT),
        "rope_theta": (_SMALL, 10**12),
        "decay_length": (0, _LARGE),
        "norm_eps": (0, 1),
    },
    Optimizer: {"epsilon": (_SMALL, 10**6), "clip_norm": (0, 10**6)},
    Stage: {
        **dict.fromkeys(("steps", "batch_size", "grad_accum_steps"), (1, _LARGE)),
        "learning_rate": (_SMALL, 1000),
        "final_lr_ratio": (0, 1),
    },
}
"""The smallest and the largest value of every setting that is a number."""
_FACTOR = (0, 10**6)
"""Factors on rates, weight decay, and weights of objectives."""
ZERO = {
    "checkpoint_minutes": "never",
    "every": "at the end of the run",
    "noise": "none",
    "bptt_chunks": "all chunks",
    "heads": "flat mixing, in mixers alone",
    "kv_heads": "as heads",
    "head_dim": "width // heads",
    "place_heads": "none",
    "decay_length": "none",
    "norm_eps": "the norm's default",
    "clip_norm": "none",
}
"""The meaning of 0 in settings where it is one of its own."""
LARGEST_CHUNKS = 2**12
"""Chunks of a row: models make a table of chunks by chunks."""
ATTENTION_SETTINGS = (
    "head_dim",
    "qk_norm",
    "norm_eps",
    "rope_theta",
    "rope_scaling",
    "tie_embeddings",
    "features",
    "place_heads",
)
"""Settings of a stack that only transformers read."""
READERS = {
    "decay_length": REPEATS,
    "channel_kernel": ("mixer",),
    "causal": ("transformer", "mixer"),
    "kv_heads": ("transformer",),
    **dict.fromkeys(ATTENTION_SETTINGS, ("transformer",)),
}
"""Settings that only stacks of some kinds read; the others leave them at their defaults."""
require = ConfigError.require


def of_another_run(init_from: str) -> bool:
    """Return whether weights are a folder's, a Hugging Face model's or a released model's."""
    outside = "/" in init_from or init_from.startswith(HUGGINGFACE)
    return outside or init_from in released.names()


def _check_values(settings: Any, prefix: str) -> None:
    """Raise ConfigError for the first setting of a class whose value alone is wrong.

    `prefix` is the key of the settings and a point.
    """
    kind = type(settings)
    for name, allowed in CHOICES.get(kind, {}).items():
        value = getattr(settings, name)
        for word in value if isinstance(value, tuple) else (value,):
            ConfigError.require_one_of(f"config.{prefix}{name}", word, allowed)
    for name, bounds in RANGES.get(kind, {}).items():
        check_range(f"{prefix}{name}", getattr(settings, name), bounds, ZERO.get(name, ""))


def check_range(key: str, value: Any, bounds: tuple[float, float], zero: str = "") -> None:
    """Raise ConfigError unless a number is in a range, bounds included."""
    low, high = bounds
    meaning = f" ({zero})" if zero else ""
    require(
        type(value) in (int, float) and low <= value <= high,
        f"config.{key}={value!r}, expected a number from {low}{meaning} to {high}",
    )


def _nearest(good: list[int], wanted: int, otherwise: str) -> str:
    """Return up to three members of `good` nearest to `wanted`, as words."""
    return ", ".join(map(str, sorted(sorted(good, key=lambda n: abs(n - wanted))[:3]))) or otherwise


def divisors_near(total: int, wanted: int) -> str:
    """The up to three divisors of `total` that are nearest to `wanted`."""
    return _nearest([d for d in range(2, total // 2 + 1) if total % d == 0], wanted, "no length")


def check(config: Config) -> None:
    """Raise ConfigError for the first invalid setting.

    `memjax.objectives.check` checks settings that depend on models or objectives.
    """
    data = config.data
    _check_values(config, "")
    for name, evaluator in config.evaluators.items():
        _check_values(evaluator, f"evaluators.{name}.")
    _check_values(data, "data.")
    require(
        data.vocab_size >= 300 or not data.corpus or bool(data.tokenizer),
        f"config.data.vocab_size={data.vocab_size} leaves no room for words beside 256 bytes and 6"
        " reserved ids; use 300 or more",
    )
    require(
        data.vocab_size > 512 or data.tokenizer != "byte_level",
        f"config.data.vocab_size={data.vocab_size} leaves no room for words beside 256 bytes and"
        " the 256 reserved ids of"
        " config.data.tokenizer='byte_level'; use more than 512",
    )
    require(
        0 < data.validation_share < 1,
        f"config.data.validation_share={data.validation_share}, expected a number strictly"
        " between 0 and 1",
    )
    _check_model(config.model, data)
    _check_mesh(config.mesh)
    _check_optimizer(config.optimizer)
    _check_stages(config)


def _check_model(model: Model, data: Data) -> None:
    _check_values(model, "model.")
    for part in ("encoder", "decoder", "reconstructor"):
        _check_values(getattr(model, part), f"model.{part}.")
    require(
        data.sequence_length % model.chunk_length == 0
        and data.sequence_length >= model.chunk_length,
        f"config.model.chunk_length={model.chunk_length} does not divide"
        f" config.data.sequence_length={data.sequence_length} into chunks; for rows of"
        f" {data.sequence_length} use {divisors_near(data.sequence_length, model.chunk_length)}",
    )
    chunks = data.sequence_length // model.chunk_length
    require(
        chunks <= LARGEST_CHUNKS,
        f"config.model.chunk_length={model.chunk_length} and config.data.sequence_length="
        f"{data.sequence_length} are rows of {chunks} chunks, expected at most {LARGEST_CHUNKS}",
    )
    require(
        not {"slots_of_ones", "slots_of_zeros"} <= set(model.compat),
        "config.model.compat names both slots_of_ones and slots_of_zeros; a slot without a memory"
        " holds one constant",
    )
    require(
        0 <= model.bottleneck <= model.encoder.width,
        f"config.model.bottleneck={model.bottleneck}, expected a number between 0 (none) and the"
        f" encoder's width {model.encoder.width}",
    )
    require(
        model.expansion != "repeat" or model.memory_vectors <= model.chunk_length,
        f"config.model.memory_vectors={model.memory_vectors} are more than the"
        f" config.model.chunk_length={model.chunk_length} positions that"
        " config.model.expansion='repeat' lays them over",
    )
    for part in ("encoder", "decoder", "reconstructor"):
        check_backbone(getattr(model, part), f"model.{part}.")
    require(
        model.expansion == "repeat" or model.reconstructor.width % 2 == 0,
        f"config.model.reconstructor.width={model.reconstructor.width}, expected an even number for"
        f" config.model.expansion={model.expansion!r}",
    )


def _check_mesh(mesh: Mesh) -> None:
    sizes = {axis: getattr(mesh, axis) for axis in MESH_AXES}
    for axis, size in sizes.items():
        require(
            size == -1 or size > 0,
            f"config.mesh.{axis}={size}, expected a number of devices, or -1 for the rest of them",
        )
    rest = [f"config.mesh.{axis}" for axis, size in sizes.items() if size == -1]
    require(len(rest) < 2, f"{' and '.join(rest)} are -1, expected one that takes the rest")
    for pattern, axes in mesh.rules:
        named = axes if isinstance(axes, tuple) else (0,)
        require(
            all(axis is None or axis in tuple(sizes) for axis in named)
            and len({*named} - {None}) == sum(axis is not None for axis in named),
            f"config.mesh.rules: {axes!r} of {pattern!r}, expected a tuple of {', '.join(sizes)}"
            " (each once at most) or None, one for each of"
            " the last dimensions",
        )


def check_backbone(backbone: Backbone, prefix: str) -> None:
    """Raise ConfigError for the first invalid setting of a stack.

    `prefix` is the key of the stack and a point. `memjax.models.check` checks its kind.
    """
    _check_values(backbone, prefix)
    require(
        backbone.hidden_width > 0,
        f"config.{prefix}mlp_ratio={backbone.mlp_ratio} leaves no hidden unit at"
        f" config.{prefix}width={backbone.width}",
    )
    for name, kinds in READERS.items():
        value, unset = getattr(backbone, name), getattr(Backbone(), name)
        require(
            backbone.kind in kinds or value == unset,
            f"config.{prefix}{name}={value!r} has no meaning in a {backbone.kind}; leave it"
            f" {unset!r}",
        )
    require(
        backbone.output_gate or not backbone.sigmoid_gate,
        f"config.{prefix}features names sigmoid_gate, which needs config.{prefix}output_gate=True",
    )
    width, heads, kv_heads = backbone.width, backbone.heads, backbone.kv_heads
    attends = backbone.kind == "transformer"
    least = "a number greater than 0 in a transformer" if attends else "0 (flat) or more"
    require(heads >= attends, f"config.{prefix}heads={heads}, expected {least}")
    if heads == 0:
        require(
            not backbone.output_gate,
            f"config.{prefix}output_gate needs heads: flat mixing has no output projection",
        )
        return
    require(
        kv_heads >= 0 and heads % (kv_heads or 1) == 0,
        f"config.{prefix}kv_heads={kv_heads}, expected a divisor of config.{prefix}heads={heads}",
    )
    require(
        backbone.kind != "mixed_repeat" or (heads % 2 == 0 and width % 2 == 0),
        f"config.{prefix}heads={heads} and config.{prefix}width={width}, expected even numbers in a"
        " mixed_repeat, half of which repeats rows and"
        " half columns",
    )
    head_dim, scaling = backbone.head_dim, backbone.rope_scaling
    require(
        head_dim >= 0 and head_dim % 2 == 0,
        f"config.{prefix}head_dim={head_dim}, expected 0 (width // heads) or an even number: rotary"
        " positions turn pairs",
    )
    require(
        not scaling or (len(scaling) == 4 and min(scaling) > 0 and scaling[1] < scaling[2]),
        f"config.{prefix}rope_scaling={scaling}, expected () or (factor, low, high, positions),"
        " four numbers greater than 0 of which"
        " low is less than high",
    )
    if head_dim:
        return
    good = [n for n in range(1, width + 1) if width % (n * (2 if attends else 1)) == 0]
    even = " into heads of even width, which rotary positions need" if attends else ""
    require(
        heads in good,
        f"config.{prefix}heads={heads} does not divide config.{prefix}width={width}{even}; use"
        f" {_nearest(good, heads, 'another width')}",
    )


def _check_optimizer(optimizer: Optimizer) -> None:
    _check_values(optimizer, "optimizer.")
    for _, name in optimizer.rules:
        ConfigError.require_one_of("config.optimizer.rules", name, OPTIMIZERS)
    for key in ("rate_rules", "decay_rules"):
        for pattern, value in getattr(optimizer, key):
            check_range(f"optimizer.{key}[{pattern!r}]", value, _FACTOR)
    for name in ("beta1", "beta2"):
        value = getattr(optimizer, name)
        require(
            0 <= value < 1, f"config.optimizer.{name}={value}, expected at least 0 and less than 1"
        )


def _check_stages(config: Config) -> None:
    order = config.curriculum + config.controls
    require(
        bool(config.curriculum), "config.curriculum is empty; name at least one of config.stages"
    )
    for key in ("curriculum", "controls"):
        for name in getattr(config, key):
            require(
                name in config.stages,
                f"config.{key} names {name!r}, which is not one of config.stages:"
                f" {', '.join(config.stages)}",
            )
    require(
        len(set(order)) == len(order),
        "config.curriculum and config.controls must not name a stage twice",
    )
    for name, stage in config.stages.items():
        require(
            re.fullmatch(r"[^/\0]{1,100}", name) and name.strip(".") and name.isprintable(),
            f"config.stages: {name!r}, expected a name that a folder can have",
        )
        others = tuple(other for other in config.stages if other != name)
        earlier = order[: order.index(name)] if name in order else others
        _check_stage(stage, f"stages.{name}.", earlier)


def _check_stage(stage: Stage, prefix: str, earlier: tuple[str, ...]) -> None:
    _check_values(stage, prefix)
    require(
        0 <= stage.warmup_steps <= stage.steps,
        f"config.{prefix}warmup_steps={stage.warmup_steps}, expected a number between 0 and"
        f" config.{prefix}steps={stage.steps}",
    )
    require(
        stage.batch_size % stage.grad_accum_steps == 0,
        f"config.{prefix}grad_accum_steps={stage.grad_accum_steps} does not divide"
        f" config.{prefix}batch_size={stage.batch_size}",
    )
    require(
        bool(stage.objectives),
        f"config.{prefix}objectives is empty; give at least one",
    )
    require(
        "overwritten_delimiter" not in stage.compat or "unscored_first_tokens" in stage.compat,
        f"config.{prefix}compat: overwritten_delimiter needs unscored_first_tokens, the published"
        " form of a chunk's inputs",
    )
    for objective, weight in stage.objectives.items():
        check_range(f"{prefix}objectives.{objective}", weight, (_SMALL, _FACTOR[1]))
    for objective, chunks in stage.scored_chunks.items():
        check_range(f"{prefix}scored_chunks.{objective}", chunks, (0, LARGEST_CHUNKS), "all")
    for pattern, value in stage.trainable:
        require(
            isinstance(value, bool) or (type(value) is int and 0 < value <= _COUNT),
            f"config.{prefix}trainable[{pattern!r}]={value!r}, expected True, False or a rank"
            f" from 1 to {_COUNT}",
        )
    for pattern, value in stage.frozen_dtypes:
        ConfigError.require_one_of(f"config.{prefix}frozen_dtypes[{pattern!r}]", value, DTYPES)
    require(
        "untrained_layers" not in stage.compat or bool(stage.init_from),
        f"config.{prefix}compat names untrained_layers, which needs config.{prefix}init_from:"
        " without it all layers are as initialised",
    )
    require(
        not stage.init_part or bool(stage.init_from),
        f"config.{prefix}init_part needs config.{prefix}init_from",
    )
    for source in stage.sources:
        require(
            source.path in earlier or of_another_run(source.path),
            f"config.{prefix}{source.key}={source.path!r} is neither an earlier stage"
            f" ({', '.join(earlier) or 'none'}), nor a released model"
            f" ({', '.join(released.names()) or 'none'}), nor a folder path",
        )
    require(
        all(stage.init_parts),
        f"config.{prefix}init_parts names an empty part; use init_from for a whole model",
    )
