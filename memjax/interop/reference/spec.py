"""A description of a model of the published PyTorch code, the spec, as a memjax config.

A spec is a mapping of plain values:

| key | meaning |
|---|---|
| `kind` | the family: causal_lm, autoencoder, information_probe, memory_model and so on (1) |
| `vocab`, `dim` | vocabulary size, decoder width |
| `layers`, `context` | layers per stack, tokens per block or chunk |
| `encoder_dim` | encoder width, where it may differ (memory_model, oracle, information_probe) |
| `chunks` | chunks of a row (memory_model, recurrent_memory) |
| `encoder`, `decoder` | transformer or mixer; or `mixer: true` for both |
| `heads`, `kernel` | attention or mixer heads (0 is flat), mixer kernel |
| `expand` | repeat or unroll (autoencoder, information_probe) |
| `compression` | ratio of the bottleneck; 1 is none |
| `final_norm` | whether transformer stacks of an autoencoder end in a norm (2) |
| `positions`, `memory_pad` | fixed or variable slots, the constant in empty ones (memory_model) |
| `no_memory` | the control (memory_model) |
| `objective`, `blank_token` | next_token, copy or blank_copy: its input (memory_model) |
| `memory_position` | -1 or -2: where the memory is read |
| `combine` | token, embedding or add (oracle) |

(1) Also recurrent_memory and oracle. (2) Without it they run at most 8 layers.
"""

from collections.abc import Collection, Mapping
from typing import Any

from memjax.config import Backbone, Config, ConfigError, Data, Model, Stage
from memjax.config.choices import EXPANSIONS, LAYOUTS, MEMORY_INJECTIONS
from memjax.errors import MemjaxError
from memjax.objectives import check

Spec = Mapping[str, Any]

KINDS = {
    "causal_lm": "causal_lm",
    "autoencoder": "autoencoder",
    "information_probe": "autoencoder",
    "memory_model": "memory_model",
    "recurrent_memory": "recurrent_memory",
    "oracle": "oracle",
}
"""Kinds of the published code and their families in memjax."""
ABBREVIATED_LAYERS = 8
"""Number of layers that an autoencoder's transformer stack without final norm runs, whatever the
number of its weights."""
STAGE = "reference"
"""Name of the one stage of an imported model."""
PARTS = ("transformer", "mixer")
READOUTS = {-1: "last", -2: "second_to_last"}
ROWS = ("next_token", "copy", "blank_copy")
"""Objectives of a published memory model, which determine its sequence."""


class SpecError(MemjaxError):
    """A spec lacks a key, or has a value of no published model; the message names the key."""


def value(spec: Spec, key: str) -> Any:
    """Return `spec[key]`, or raise an error that names it."""
    if key not in spec:
        raise SpecError(
            f"the spec has no {key!r}, which a model of kind {spec.get('kind')!r} needs"
        )
    return spec[key]


def choice(spec: Spec, key: str, allowed: Collection[Any], default: Any = None) -> Any:
    """Return `spec[key]`, by default `default`, or raise an error with the allowed values."""
    given = spec.get(key, default)
    # Compare types too (1 == True), and a list cannot be looked up in a set.
    if not any(given == known and type(given) is type(known) for known in allowed):
        raise SpecError(
            f"{key}={given!r} is unknown, expected one of {', '.join(map(str, allowed))}"
        )
    return given


def number(spec: Spec, key: str, least: int = 1, default: int | None = None) -> int:
    """Return `spec[key]`, an integer of at least `least`; without a default the key is required."""
    given = value(spec, key) if default is None else spec.get(key, default)
    if type(given) is not int or given < least:
        raise SpecError(f"{key}={given!r} must be an integer of {least} or more")
    return given


def flag(spec: Spec, key: str, default: bool = False) -> bool:
    """Return `spec[key]`, true or false."""
    return choice(spec, key, (True, False), default)


def family(spec: Spec) -> str:
    """Return the memjax family of the spec's kind."""
    value(spec, "kind")
    return KINDS[choice(spec, "kind", KINDS)]


def stack_kind(spec: Spec, part: str) -> str:
    """Return `transformer` or `mixer`, for the `encoder` or the `decoder`."""
    return choice(spec, part, PARTS, "mixer" if flag(spec, "mixer") else "transformer")


def bottleneck(spec: Spec) -> int:
    """Return the width of the bottleneck; 0 is none."""
    ratio, width = number(spec, "compression", default=1), _encoder_width(spec)
    if ratio > width:
        raise SpecError(f"compression={ratio} leaves nothing of an encoder of width {width}")
    return width // ratio if ratio > 1 else 0


def abbreviated(spec: Spec) -> bool:
    """Return whether transformer stacks run without their final norm, and with 8 layers at most."""
    return KINDS[spec["kind"]] == "autoencoder" and not flag(spec, "final_norm", True)


def to_config(spec: Spec) -> Config:
    """Return the config of the memjax model that computes the same function as the spec's model.

    Raises:
      SpecError: a key is missing or has a value of no published model.
    """
    kind, context = family(spec), number(spec, "context")
    chunks = number(spec, "chunks") if kind in ("memory_model", "recurrent_memory") else 1
    model = Model(
        chunk_length=context,
        readout=READOUTS[choice(spec, "memory_position", READOUTS, -1)],
        bottleneck=bottleneck(spec) if kind in ("autoencoder", "memory_model", "oracle") else 0,
        expansion=choice(spec, "expand", EXPANSIONS, "unroll"),
        layout=choice(spec, "positions", LAYOUTS, "fixed"),
        memory_injection=choice(spec, "combine", MEMORY_INJECTIONS, "token"),
        token_positions=False,
        chunk_positions=False,
        task_embedding=False,
        compat=_compat(spec),
        encoder=_backbone(spec, "encoder"),
        decoder=_backbone(spec, "decoder"),
        reconstructor=_backbone(spec, "decoder"),
    )
    stage = Stage(
        family=kind,
        objectives={"reconstruction" if kind == "autoencoder" else objective(spec): 1.0},
        memory=kind != "memory_model" or not flag(spec, "no_memory"),
        compat=("unscored_first_tokens", "chunk_means") if kind != "autoencoder" else (),
    )
    data = Data(corpus="", vocab_size=number(spec, "vocab"), sequence_length=chunks * context)
    config = Config(
        name=str(spec.get("name", STAGE)),
        data=data,
        model=model,
        stages={STAGE: stage},
        curriculum=(STAGE,),
    )
    try:
        check(config)
    except ConfigError as error:
        raise SpecError(f"the spec is of no model that can be: {error}") from error
    return config


def objective(spec: Spec) -> str:
    """Return the objective of a memory model, which determines its sequence; other families predict
    the next token.
    """
    return choice(spec, "objective", ROWS if family(spec) == "memory_model" else ROWS[:1], ROWS[0])


def _backbone(spec: Spec, part: str) -> Backbone:
    kind = stack_kind(spec, part)
    width = _encoder_width(spec) if part == "encoder" else _decoder_width(spec)
    layers = number(spec, "layers")
    if kind == "transformer":
        # Transformer decoders of published oracles have four heads, whatever their mixers have.
        fixed = (
            family(spec) == "oracle"
            and part == "decoder"
            and stack_kind(spec, "encoder") == "mixer"
        )
        heads = 4 if fixed else number(spec, "heads", least=1)
        return Backbone(
            kind=kind,
            width=width,
            layers=min(layers, ABBREVIATED_LAYERS) if abbreviated(spec) else layers,
            heads=heads,
            final_norm=not abbreviated(spec),
        )
    heads, kernel = number(spec, "heads", least=0, default=0), number(spec, "kernel", default=1)
    if part == "decoder" and family(spec) in ("memory_model", "oracle"):
        heads = 0
        kernel = 1 if family(spec) == "memory_model" else kernel
    if stack_kind(spec, "encoder") != stack_kind(spec, "decoder") and family(spec) == "autoencoder":
        heads = 0  # Hybrids count attention heads.
    return Backbone(
        kind=kind,
        width=width,
        layers=layers,
        heads=heads,
        channel_kernel=kernel,
        mlp="gelu",
        norm="layer",
        final_norm=False,
    )


def _encoder_width(spec: Spec) -> int:
    if family(spec) in ("memory_model", "oracle") or spec["kind"] == "information_probe":
        return number(spec, "encoder_dim")
    return number(spec, "dim")


def _decoder_width(spec: Spec) -> int:
    beside = 0
    if family(spec) == "oracle" and spec.get("combine") == "embedding":
        beside = bottleneck(spec) or _encoder_width(spec)
    return number(spec, "dim") + beside


def _compat(spec: Spec) -> tuple[str, ...]:
    kind = family(spec)
    if kind == "recurrent_memory":
        return ("overwritten_write_slot", "attended_padding")
    quirks: tuple[str, ...] = ()
    if kind == "memory_model" and spec.get("positions", "fixed") == "fixed":
        fill = choice(
            spec,
            "memory_pad",
            (0.0, 1.0, 0, 1),
            0.0 if stack_kind(spec, "decoder") == "mixer" else 1.0,
        )
        quirks = ("slots_of_ones" if fill == 1.0 else "slots_of_zeros",)
    if kind == "autoencoder" or "mixer" in (
        stack_kind(spec, "encoder"),
        stack_kind(spec, "decoder"),
    ):
        quirks += ("attended_padding",)
    return quirks
