"""Convert settings to and from ml_collections trees, JSON and the command line.

Every key and type is checked on the way in.
"""

import ast
import dataclasses
import difflib
import functools
import json
import re
import sys
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_collections

from memjax.config.checks import check
from memjax.config.settings import Config, ConfigError, Rules
from memjax.files import parse_json

_UNCHECKED_ON_RESUME = re.compile(
    r"(log_every|checkpoint_every|checkpoint_minutes|checkpoints_kept|checkpoint_best|evaluators"
    r"|wandb_project|name|mesh)(\.|$)|model\.remat$|stages\..*\.grad_accum_steps$"
)
"""Keys that may differ on resume: they affect no batch, and weights by their rounding alone."""


def to_config_dict(config: Config) -> ml_collections.ConfigDict:
    """Return the config as an ml_collections.ConfigDict, for flags to override."""
    tree = dataclasses.asdict(config)
    return ml_collections.ConfigDict(tree, convert_dict=True)


def from_config_dict(tree: Mapping[str, Any], overrides: Iterable[tuple[str, str]] = ()) -> Config:
    """Check a config tree and freeze it.

    Args:
      tree: settings by name; those that are missing keep their defaults.
      overrides: keys with the text of their new values, such as `("data.vocab_size", "8000")`.
        A tuple of names or numbers is a list with commas; rules and groups are Python literals.
        An objective may be new, and weight 0 removes it.

    Raises:
      ConfigError: a key is unknown, of the wrong type, or at odds with another.
    """
    if isinstance(tree, ml_collections.ConfigDict):
        tree = tree.to_dict()
    config = _build(_with_dials(tree), Config)
    for key, text in overrides:
        config = _overridden(config, key, text)
    check(config)
    return config


def to_json(config: Config) -> str:
    """Return the resolved config as JSON text, keys sorted."""
    return json.dumps(dataclasses.asdict(config), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> Config:
    """Return the config of a JSON text: the inverse of `to_json`."""
    return from_config_dict(parse_json(text, "config", ConfigError))


def differences(ours: Config, theirs: Config, unchecked: bool = False) -> list[str]:
    """Return the keys that differ, as `key: ours, theirs`.

    Args:
      ours: a config.
      theirs: the other one.
      unchecked: return those that may differ on resume, instead of those that fix the result.
    """
    flat_ours, flat_theirs = (_flatten(dataclasses.asdict(one)) for one in (ours, theirs))
    return [
        f"{key}: {flat_ours.get(key, 'absent')!r} now, {flat_theirs.get(key, 'absent')!r} there"
        for key in sorted(flat_ours.keys() | flat_theirs.keys())
        if bool(_UNCHECKED_ON_RESUME.match(key)) == unchecked
        and flat_ours.get(key) != flat_theirs.get(key)
    ]


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, Mapping):
        return {
            k: v
            for name, sub in tree.items()
            for k, v in _flatten(sub, f"{prefix}.{name}" if prefix else name).items()
        }
    return {prefix: _tuples(tree)}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, (list, tuple)) else value


_DIALS = {"temperature": 0.02, "query_tokens": 7}
"""Settings of a stage that became dials, with their defaults."""


def _with_dials(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the tree of a config; one that an early 0.2.0 wrote gets _DIALS where they are now."""
    stages = tree.get("stages") if isinstance(tree, Mapping) else None
    if not isinstance(stages, Mapping):
        return tree
    return {**tree, "stages": {name: _dialled(stage) for name, stage in stages.items()}}


def _dialled(stage: Any) -> Any:
    if not isinstance(stage, Mapping) or not _DIALS.keys() & stage.keys():
        return stage
    moved = {k: stage[k] for k in _DIALS if k in stage and stage[k] != _DIALS[k]}
    kept = {key: value for key, value in stage.items() if key not in _DIALS}
    return kept | ({"dials": {**kept.get("dials", {}), **moved}} if moved else {})


_OBJECTIVES = Mapping[str, float]
_NUMBERS = tuple[float, ...]
_WORDS: Mapping[Any, str] = {
    float: "a finite number",
    int: "a whole number",
    str: "text",
    bool: "True or False",
    Any: "one value",
    _NUMBERS: "a tuple of numbers",
    tuple[str, ...]: "a tuple of names",
    Rules: "a tuple of (path regex, value) pairs",
}
"""Types of settings, as messages name them; the others have their Python names."""
_BOOLEANS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_PARSERS: Mapping[Any, Callable[[str], Any]] = {
    int: int,
    float: float,
    bool: lambda text: _BOOLEANS[text.lower()],
    str: str,
}
_hints = functools.cache(typing.get_type_hints)


def _overridden(config: Config, key: str, text: str) -> Config:
    """Return `config` with one setting changed; only the group that holds it is built again."""
    tree = _replaced(dataclasses.asdict(config), key, text)
    name = key.partition(".")[0]
    built = _build(tree[name], _type_of(name, Config, tree, key, ""), name)
    return dataclasses.replace(config, **{name: built})


def _replaced(tree: dict[str, Any], key: str, text: str) -> dict[str, Any]:
    """Return `tree` with one setting changed to the value that `text` stands for."""
    *groups, name = key.split(".")
    group, kind, prefix = tree, Config, ""
    for part in groups:
        kind = _type_of(part, kind, group, key, prefix)
        group, prefix = group.get(part, {}), f"{prefix}{part}."
    value = _parsed(text, _type_of(name, kind, group, key, prefix), key)
    group[name] = value
    if kind == _OBJECTIVES and value == 0:
        del group[name]
    return tree


def _type_of(name: str, kind: Any, group: Mapping[str, Any], key: str, prefix: str) -> Any:
    """Return the type of the member `name` of a group of settings of type `kind`.

    Raises:
      ConfigError: it has no such member. The message names `key`, and members after `prefix`.
    """
    if not _is_group(kind):
        raise ConfigError(
            f"config.{prefix.removesuffix('.')}: {_words(kind)}, expected no key {name!r} below it"
        )
    members: dict[str, Any] = _hints(kind) if dataclasses.is_dataclass(kind) else {}
    if typing.get_origin(kind) is Mapping:
        # Stages and evaluators are those that there are; objectives and dials may be new.
        member = typing.get_args(kind)[1]
        members = dict.fromkeys(group if dataclasses.is_dataclass(member) else [name], member)
    if name not in members:
        close = difflib.get_close_matches(name, members, n=1)
        there = ", ".join(sorted(members)) or "none"
        raise ConfigError(
            f"config.{key} is not a setting; "
            + (
                f"did you mean config.{prefix}{close[0]}?"
                if close
                else f"the keys there are {there}"
            )
        )
    return members[name]


def _parsed(text: str, kind: Any, key: str) -> Any:
    """Return the value of a text where a setting of this type is expected."""
    try:
        if kind in _PARSERS:
            return _PARSERS[kind](text)
        listed = kind in (_NUMBERS, tuple[str, ...])
        if listed and not text.lstrip().startswith(("(", "[", "'", '"')):
            parse = _PARSERS[typing.get_args(kind)[0]]
            return tuple(parse(word.strip()) for word in text.split(",") if word.strip())
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError) as error:
        if kind is Any:
            return text  # A dial; its family checks it.
        wanted = {Rules: _WORDS[Rules], _NUMBERS: "numbers with commas between them"}
        name = kind.__name__ if kind in _PARSERS else wanted.get(kind, "a Python literal")
        raise ConfigError(f"config.{key}: expected {name}, got {text!r}") from error


def _build(value: Any, kind: Any, key: str = "") -> Any:
    """Return `value` as the declared type, or raise an error that names the key."""
    if _is_group(kind):
        return _build_group(value, kind, key)
    try:
        json.dumps(value, ensure_ascii=False, default=str).encode()
        shown, frozen = repr(value), _tuples(value)
    except (RecursionError, ValueError) as error:  # Half surrogates, or thousands of digits.
        raise ConfigError(f"config.{key}: {error}, expected {_words(kind)}") from error
    if not _fits(frozen, kind):
        raise ConfigError(f"config.{key}={shown}, expected {_words(kind)}")
    for pattern, _ in frozen if kind == Rules else ():
        try:
            with warnings.catch_warnings(action="error"):
                re.compile(pattern)
        except (re.error, ArithmeticError, RecursionError, Warning) as error:
            raise ConfigError(
                f"config.{key}: {pattern!r} is not a regular expression ({error})"
            ) from error
    if kind == _NUMBERS:
        return tuple(map(float, frozen))
    return float(frozen) if kind is float else frozen


def _build_group(group: Any, kind: Any, key: str) -> Any:
    is_class = dataclasses.is_dataclass(kind)
    if not isinstance(group, Mapping):
        there = f"settings: {', '.join(sorted(_hints(kind)))}" if is_class else "named values"
        raise ConfigError(f"config.{key}={group!r}, expected a group of {there}")
    built, prefix = {}, f"{key}." if key else ""
    for name, value in group.items():
        own = f"{prefix}{name}"
        ConfigError.require(
            isinstance(name, str), f"config.{own}: a {type(name).__name__}, expected text"
        )
        built[name] = _build(value, _type_of(name, kind, group, own, prefix), own)
    if not is_class:
        return built
    for field in dataclasses.fields(kind):
        unset = field.default is field.default_factory is dataclasses.MISSING
        ConfigError.require(
            field.name in built or not unset, f"config.{key}: no {field.name}, expected it there"
        )
    return kind(**built)


def _is_group(kind: Any) -> bool:
    return dataclasses.is_dataclass(kind) or typing.get_origin(kind) is Mapping


def _words(kind: Any) -> str:
    return _WORDS.get(kind, getattr(kind, "__name__", "one value"))


def _fits(value: Any, kind: Any) -> bool:
    """Return whether a value is of a declared type; a whole number fits where a real one does."""
    if typing.get_origin(kind) is tuple:
        kinds = typing.get_args(kind)
        if not isinstance(value, tuple):
            return False
        if kinds[-1] is Ellipsis:
            return all(_fits(member, kinds[0]) for member in value)
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return kind is Any or type(value) is kind
