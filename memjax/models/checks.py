"""Checks of a config that need the families of models: their names, dials and settings.

A setting or quirk that no stage of the run reads is refused. Errors name the key.
"""

from collections.abc import Mapping

from memjax.config import Config, ConfigError, Model, Stage
from memjax.config.checks import divisors_near, of_another_run
from memjax.layers import MIXERS
from memjax.models.registry import FAMILIES, can, families_that, find

BY_PLACE = ("blind_memories", "constant_addresses")
"""Features of a stack that reads memories by their place in the text."""


def check(config: Config) -> None:
    """Raises ConfigError for the first setting that the families of the run cannot have."""
    stages = {f"config.stages.{name}": stage for name, stage in config.stages.items()}
    for key, stage in stages.items():
        find(stage.family, f"{key}.family").dials_of(stage, key)
    families = {stage.family for stage in config.stages.values()}
    _check_rows(config, families)
    _check_model(config.model, families)
    _check_places(config.model, families)
    for key, stage in stages.items():
        find(stage.family).check(config, stage, key)
        _check_stage_quirks(stage, key)
    _check_read(config, families)
    _check_noise(config)
    if config.data.memories:
        order = config.curriculum + config.controls
        _check_memories(config, {f"config.stages.{name}": config.stages[name] for name in order})


def _check_rows(config: Config, families: set[str]) -> None:
    ConfigError.require(
        config.chunks > 1 or not any(can(family, "reads_chunks") for family in families),
        f"config.model.chunk_length={config.model.chunk_length} does not divide"
        f" config.data.sequence_length={config.data.sequence_length} into two chunks or more; for"
        f" rows of {config.data.sequence_length} use"
        f" {divisors_near(config.data.sequence_length, config.model.chunk_length)}",
    )


def _check_model(model: Model, families: set[str]) -> None:
    ConfigError.require(
        model.memory_vectors == 1
        or model.readout == "memory_tokens"
        or not families & set(families_that("encodes")),
        f"config.model.memory_vectors={model.memory_vectors} needs"
        " config.model.readout='memory_tokens': one position gives one vector",
    )
    for part in ("encoder", "decoder", "reconstructor"):
        ConfigError.require_one_of(
            f"config.model.{part}.kind", getattr(model, part).kind, tuple(MIXERS)
        )
        others = sorted(family for family in families if part in find(family).untied)
        ConfigError.require(
            not getattr(model, part).tie_embeddings or not others,
            f"config.model.{part}.tie_embeddings=True is not read by stages of family"
            f" {', '.join(others)}; only stages of family"
            " memory_model and causal_lm read it, of config.model.decoder",
        )
    predictors = sorted(families & set(families_that("predicts")))
    ConfigError.require(
        model.decoder.causal or not predictors,
        f"config.model.decoder.causal=False lets a stage of family {', '.join(predictors)} read the"
        " tokens it is to predict; use True",
    )


def _check_places(model: Model, families: set[str]) -> None:
    """Check the parts that read memories by their place, of which stacks without any have none."""
    for part in ("encoder", "reconstructor", "decoder"):
        stack = getattr(model, part)
        users = {family for family in families if find(family).backbone == part}
        reads = part == "decoder" and all(
            model.layout == "text" and _reads(family, "layout") for family in users
        )
        named = [name for name in ("place_heads", *BY_PLACE) if getattr(stack, name)]
        ConfigError.require(
            reads or not named,
            f"config.model.{part} has {' and '.join(named)}, expected none. Only a decoder of"
            f" family {', '.join(_readers('layout'))} with config.model.layout='text' reads"
            " memories by their place",
        )
        ConfigError.require(
            stack.place_heads or not stack.constant_addresses,
            f"config.model.{part}.features names constant_addresses, which needs"
            f" config.model.{part}.place_heads greater than 0",
        )


def _readers(name: str) -> tuple[str, ...]:
    """The families that read a setting or quirk; all of them where none declares it."""
    return tuple(a.name for a in FAMILIES.values() if name in a.reads) or tuple(FAMILIES)


def _reads(family: str, name: str) -> bool:
    return name in find(family).reads or family in _readers(name)


def _only(readers: tuple[str, ...]) -> str:
    return f"only stages of family {', '.join(readers)} do"


def _check_read(config: Config, families: set[str]) -> None:
    model, default = config.model, Model()
    for name in vars(default):
        value, unset, readers = getattr(model, name), getattr(default, name), _readers(name)
        ConfigError.require(
            value == unset or any(_reads(family, name) for family in families),
            f"config.model.{name}={value!r} is read by no stage here; {_only(readers)}; leave it"
            f" {unset!r}",
        )
    for quirk in model.compat:
        readers = _readers(quirk)
        ConfigError.require(
            any(_reads(family, quirk) for family in families),
            f"config.model.compat names {quirk}, which no stage here reads; {_only(readers)}",
        )


def _check_noise(config: Config) -> None:
    model = config.model
    ConfigError.require(
        "one_sided_noise" not in model.compat or model.noise > 0,
        f"config.model.noise={model.noise}, expected a number greater than 0 for one_sided_noise of"
        " config.model.compat",
    )
    ConfigError.require(
        "residual_noise" not in model.compat or model.bottleneck > 0,
        "config.model.bottleneck=0, expected a number greater than 0 for residual_noise of"
        " config.model.compat, which bypasses the bottleneck",
    )
    # An encoder trained with the quirk in another run computes another function without it.
    taken = any(of_another_run(s.path) for stage in config.stages.values() for s in stage.sources)
    ConfigError.require(
        "residual_noise" not in model.compat or model.noise > 0 or taken,
        f"config.model.noise={model.noise}, expected a number greater than 0 for residual_noise of"
        " config.model.compat. Only with another run's weights as init_from may it be 0",
    )


def _check_stage_quirks(stage: Stage, key: str) -> None:
    for quirk in stage.compat:
        ConfigError.require(
            _reads(stage.family, quirk),
            f"{key}.compat names {quirk}, which a stage of family {stage.family} does not read;"
            f" {_only(_readers(quirk))}",
        )
    ConfigError.require(
        stage.memory or can(stage.family, "reads_memories"),
        f"{key}.memory=False has no meaning in a stage of family {stage.family}",
    )
    ConfigError.require(
        not stage.scored_chunks or can(stage.family, "reads_memories"),
        f"{key}.scored_chunks={dict(stage.scored_chunks)} has no meaning in a stage of family"
        f" {stage.family}; leave it {{}}",
    )


def _check_memories(config: Config, stages: Mapping[str, Stage]) -> None:
    """Check that every encoder of the run is the one whose memories are stored.

    Whether its parameters are frozen, and wrote the memories, is checked when they are there
    (training/encode_corpus.py).
    """
    key = f"config.data.memories={config.data.memories!r}"
    source = config.stages.get(config.data.memories)
    if source is not None:
        ConfigError.require(
            can(source.family, "encodes"),
            f"{key} is a stage of family {source.family!r}, expected one with an encoder",
        )
    for name, stage in stages.items():
        ConfigError.require(
            source is not None
            or can(stage.family, "reads_memories")
            or not can(stage.family, "encodes"),
            f"{key} is read by stages of family {', '.join(families_that('reads_memories'))}, and"
            f" {name}.family={stage.family!r} runs its encoder; train that"
            " stage in a run without stored memories and pass its folder as init_from",
        )
    ConfigError.require(
        any(can(stage.family, "reads_memories") and stage.memory for stage in stages.values()),
        f"{key} is read by no stage here; only stages of family"
        f" {', '.join(families_that('reads_memories'))} with memory=True do; leave it ''",
    )
    ConfigError.require(
        config.model.noise == 0,
        f"{key} has no noise, and every step draws new noise of"
        f" config.model.noise={config.model.noise}; use 0 or leave config.data.memories ''",
    )
