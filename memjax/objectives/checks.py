"""Checks of a config that need objectives; with them a config is wholly checked."""

from collections.abc import Iterable, Mapping
from typing import Any

from memjax import config as settings
from memjax import models
from memjax.config import Config, ConfigError, Stage
from memjax.files import parse_json
from memjax.models import can, find
from memjax.objectives.registry import OBJECTIVES

DELIMITED = ("copy", "blank_copy")
"""Objectives that begin with a delimiter."""


def load_config(
    source: str | Mapping[str, Any], overrides: Iterable[tuple[str, str]] = ()
) -> Config:
    """Parse a config, a tree of settings or its JSON text, and check all of it.

    Args:
      source: the tree or the text.
      overrides: as in `memjax.config.from_config_dict`.

    Raises:
      ConfigError: a setting is unknown, impossible or at odds with another.
    """
    tree = parse_json(source, "config", ConfigError) if isinstance(source, str) else source
    config = settings.from_config_dict(tree, overrides)
    check(config)
    return config


def of_family(family: str) -> tuple[str, ...]:
    """Return the names of the objectives that a family can be trained for."""
    capabilities = find(family).capabilities
    return tuple(name for name, objective in OBJECTIVES.items() if objective.needs in capabilities)


def check(config: Config) -> None:
    """Raise ConfigError for the first impossible setting, of any kind."""
    settings.check(config)
    models.check(config)
    if config.checkpoint_best:
        names = {name for stage in config.stages.values() for name in stage.objectives}
        kept = sorted(name for name in names if name in OBJECTIVES and is_measured(name))
        numbers = tuple(f"{name}/{kind}" for name in kept for kind in ("nats", "accuracy"))
        ConfigError.require_one_of("config.checkpoint_best", config.checkpoint_best, numbers)
    for name, stage in config.stages.items():
        _check_stage(config, stage, f"config.stages.{name}")


def is_measured(name: str) -> bool:
    """Return whether held-out sequences are scored by an objective."""
    return OBJECTIVES[name].held_out is not None


def weighed(stage: Stage) -> list[str]:
    """Return the objectives of a stage that read `config.data.attributions`."""
    return [name for name in stage.objectives if OBJECTIVES[name].reads_attribution]


def _check_stage(config: Config, stage: Stage, key: str) -> None:
    known = of_family(stage.family)
    for name in stage.objectives:
        ConfigError.require_one_of(f"{key}.objectives", name, known)
    ConfigError.require(
        config.data.attributions or not weighed(stage),
        f"{key}.objectives names {', '.join(weighed(stage))}, which needs config.data.attributions",
    )
    for name in stage.objectives:
        OBJECTIVES[name].check(config, stage, key)
    ConfigError.require(
        "overwritten_delimiter" not in stage.compat or set(DELIMITED) & set(stage.objectives),
        f"{key}.compat names overwritten_delimiter, which only {' and '.join(DELIMITED)} read;"
        f" {key}.objectives names neither",
    )
    rows = can(stage.family, "reads_rows")
    length = config.data.sequence_length if rows else config.model.chunk_length
    for quirk, least in (("unscored_first_tokens", 2), ("overwritten_delimiter", 4)):
        ConfigError.require(
            quirk not in stage.compat or length >= least,
            f"config.{'data.sequence_length' if rows else 'model.chunk_length'}={length} leaves"
            f" no token to score under {key}.compat's {quirk}; use {least} or more",
        )
