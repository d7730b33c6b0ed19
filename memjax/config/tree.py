"""Settings to and from ml_collections trees and JSON, with every key and type checked on the way in."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from memjax.config.checks import check
from memjax.config.settings import Backbone, Config, ConfigError, Data, Mesh, Model, Optimizer, Rules, Stage

UNCHECKED_ON_RESUME = frozenset(
    {
        "log_every",
        "checkpoint_every",
        "checkpoint_minutes",
        "checkpoints_kept",
        "checkpoint_best",
        "evaluate_every",
        "evaluation_rows",
        "wandb_project",
        "name",
        "mesh",
    }
)
"""Top-level keys a run may change when it goes on: they touch no weight and no batch."""


def to_config_dict(config: Config) -> ml_collections.ConfigDict:
    """The config as an ml_collections.ConfigDict, for flags to override."""
    tree = dataclasses.asdict(config)
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


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, Mapping):
        return {k: v for name, sub in tree.items() for k, v in _flatten(sub, f"{prefix}.{name}" if prefix else name).items()}
    return {prefix: _tuples(tree)}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


_NESTED = {kind.__name__: kind for kind in (Backbone, Data, Mesh, Model, Optimizer)}


def _build(kind: type, tree: Mapping[str, Any], prefix: str) -> Any:
    if not isinstance(tree, Mapping):
        raise ConfigError(f"config.{prefix.rstrip('.')}={tree!r} must be a group of settings: {', '.join(_names_of(kind))}")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    built: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {prefix}{close[0]}?" if close else f"the keys there are {', '.join(sorted(fields))}"
            raise ConfigError(f"config.{key} is not a setting; {hint}")
        if fields[name].type in _NESTED:
            built[name] = _build(_NESTED[str(fields[name].type)], value, f"{key}.")
        elif name in ("stages", "objectives") and not isinstance(value, Mapping):
            raise ConfigError(f"config.{key}={value!r} must be a group of named values")
        elif name == "stages":
            built[name] = {stage: _build(Stage, sub, f"{key}.{stage}.") for stage, sub in value.items()}
        elif name == "objectives":
            built[name] = {objective: _number(weight, f"{key}.{objective}") for objective, weight in value.items()}
        else:
            built[name] = _typed(value, fields[name].type, key)
    return kind(**built)


def _names_of(kind: type) -> list[str]:
    return sorted(field.name for field in dataclasses.fields(kind))


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
