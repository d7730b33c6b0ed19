"""Which families of models read a setting or a quirk. One that nothing in the run reads is refused: it would say what is not so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memjax.config.settings import FAMILIES, Config, ConfigError, Model, Stage

WITH_ENCODER = tuple(family for family in FAMILIES if family not in ("recurrent_memory", "causal_lm", "entropy_regressor"))
"""Families with an encoder (models/encoder.py)."""
PREDICTORS = ("memory_model", "recurrent_memory", "causal_lm", "oracle")
"""Families that are trained for next tokens: their decoder says what it must not have read."""
READERS: Mapping[str, tuple[str, ...]] = {
    "combine": ("oracle",),
    "truncate": ("recurrent_memory",),
    "expansion": ("autoencoder",),
    "layout": ("memory_model",),
    **dict.fromkeys(("noise", "readout", "bottleneck"), WITH_ENCODER),
}
"""Settings of the model that only some families read. Those that are not here are accepted everywhere."""
MODEL_QUIRK_READERS: Mapping[str, tuple[str, ...]] = {
    "overwritten_write_slot": ("recurrent_memory",),
    **dict.fromkeys(("one_sided_noise", "residual_noise"), WITH_ENCODER),
}
"""The same of its quirks. Published forms name slots where there are none, so that these are accepted too."""
STAGE_QUIRK_READERS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("unscored_first_tokens", "chunk_means"), PREDICTORS),
    "overwritten_delimiter": ("memory_model",),
}
"""The same of a stage's quirks."""
SLOTS = ("slots_of_ones", "slots_of_zeros")
DELIMITED = ("copy", "blank_copy")
"""Objectives that begin with a delimiter."""


def check_readers(config: Config) -> None:
    """Raises ConfigError for the first setting or quirk that no stage reads."""
    families = {stage.family for stage in config.stages.values()}
    model, default = config.model, Model()
    for name, readers in READERS.items():
        value, unset = getattr(model, name), getattr(default, name)
        _require(
            value == unset or bool(families & set(readers)),
            f"config.model.{name}={value!r} is read by no stage here; {_only(readers)}; leave it {unset!r}",
        )
    for quirk in model.compat:
        readers = MODEL_QUIRK_READERS.get(quirk, FAMILIES)
        _require(
            bool(families & set(readers)), f"config.model.compat names {quirk}, which no stage here reads; {_only(readers)}"
        )
    _check_model_quirks(config, families)
    for name in config.curriculum + config.controls:
        _check_stage_quirks(config, config.stages[name], f"config.stages.{name}")
    if config.data.memories:
        _check_memories(config)


def _check_memories(config: Config) -> None:
    """Memories on disk stand for an encoder that does not move: every encoder of the run must be that one, asked for what was stored.

    Whether its parameters are frozen, and are those that wrote the memories, is known when they are there (training/encode_corpus.py).
    """
    key = f"config.data.memories={config.data.memories!r}"
    stages = {name: config.stages[name] for name in config.curriculum + config.controls}
    for name, stage in stages.items():
        _require(
            stage.family == "memory_model" or stage.family not in WITH_ENCODER,
            f"{key} is read by stages of family memory_model, and config.stages.{name}.family={stage.family!r} runs its encoder; train that"
            " stage in a run without stored memories and name its folder in init_from",
        )
        copies = [objective for objective in stage.objectives if objective.endswith("copy")]
        _require(
            "unscored_first_tokens" not in stage.compat or stage.family != "memory_model" or not stage.memory or not copies,
            f"{key} has no memories of what {', '.join(copies)} encode under config.stages.{name}.compat's unscored_first_tokens: copies as"
            " they stand in the row; leave one of them out",
        )
    _require(
        any(stage.family == "memory_model" and stage.memory for stage in stages.values()),
        f"{key} is read by no stage here; only stages of family memory_model with memory=True do; leave it ''",
    )
    _require(
        config.model.noise == 0,
        f"{key} has no noise, and config.model.noise={config.model.noise} is drawn anew in every step; use 0 or leave config.data.memories ''",
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _only(readers: tuple[str, ...]) -> str:
    return f"only stages of family {', '.join(readers)} do"


def _named(quirks: tuple[str, ...], among: tuple[str, ...]) -> str:
    return next((quirk for quirk in among if quirk in quirks), "")


def _check_model_quirks(config: Config, families: set[str]) -> None:
    model: Any = config.model
    slots = _named(model.compat, SLOTS)
    _require(
        not slots or model.layout == "fixed" or "memory_model" not in families,
        f"config.model.compat names {slots}, with which no slot is passed over, so that config.model.layout={model.layout!r} is the same"
        " as 'fixed'; use 'fixed'",
    )
    _require(
        "one_sided_noise" not in model.compat or model.noise > 0,
        f"config.model.compat names one_sided_noise, and config.model.noise={model.noise} is none",
    )
    _require(
        "residual_noise" not in model.compat or model.bottleneck > 0,
        "config.model.compat's residual_noise needs config.model.bottleneck, which it goes around",
    )
    # An encoder that was trained so elsewhere is another function without it, with noise or not.
    taken = any("/" in stage.init_from for stage in config.stages.values())
    _require(
        "residual_noise" not in model.compat or model.noise > 0 or taken,
        f"config.model.compat names residual_noise, and config.model.noise={model.noise} is none; it may be so only where a stage's"
        " init_from is the folder of another run, which had it",
    )
    _require(
        "residual_noise" not in model.compat or model.combine != "embedding" or "oracle" not in families,
        "config.model.compat names residual_noise, which adds the memory to what leaves the bottleneck, and"
        " config.model.combine='embedding' leaves out the map back to the memory's width; use 'token' or 'add'",
    )


def _check_stage_quirks(config: Config, stage: Stage, key: str) -> None:
    for quirk in stage.compat:
        readers = STAGE_QUIRK_READERS.get(quirk, FAMILIES)
        _require(
            stage.family in readers,
            f"{key}.compat names {quirk}, which a stage of family {stage.family} does not read; {_only(readers)}",
        )
    _require(
        "overwritten_delimiter" not in stage.compat or bool(set(DELIMITED) & set(stage.objectives)),
        f"{key}.compat names overwritten_delimiter, which only {' and '.join(DELIMITED)} read; {key}.objectives names neither",
    )
    _require(
        "untrained_layers" not in stage.compat or bool(stage.init_from),
        f"{key}.compat names untrained_layers, which needs {key}.init_from: without it all layers are as initialised",
    )
    of_rows = stage.family == "causal_lm"
    length = config.data.row_tokens if of_rows else config.model.chunk_length
    for quirk, least in (("unscored_first_tokens", 2), ("overwritten_delimiter", 4)):
        _require(
            quirk not in stage.compat or length >= least,
            f"config.{'data.row_tokens' if of_rows else 'model.chunk_length'}={length} leaves no token to score under {key}.compat's"
            f" {quirk}; use {least} or more",
        )
