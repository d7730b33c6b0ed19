"""Flags of commands that take a config: --config=FILE, --config.KEY=VALUE, and their own."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from memjax.config import Config, ConfigError, from_config_dict


def read_flags(
    args: Sequence[str], example: str, define: Callable[[flags.FlagValues], None], required: Sequence[str] = ()
) -> tuple[Config, flags.FlagValues]:
    """The checked config and the other flags of a command line.

    Args:
      args: command name and flags.
      example: a command line that is right, for messages.
      define: defines the command's own flags.
      required: names of those that must be given.

    Raises:
      flags.Error: a flag is unknown, missing or has no readable value.
      ConfigError: the file cannot be loaded, or a key is unknown or wrong.
    """
    args = list(args)
    given = {arg.split("=")[0] for arg in args}
    for name in ("config", *required):
        if f"--{name}" not in given:
            raise flags.IllegalFlagValueError(f"--{name} is missing; for example: {example}")
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "The experiment: a file with get_config().", values, sys_argv=args)
    define(values)
    try:
        rest = values(args)
        tree: Any = values["config"].value
        if not isinstance(tree, ml_collections.ConfigDict):
            # A file that is not there comes as an object that raises when it is read.
            tree = tree.to_dict()
    except flags.Error:
        raise
    except (AttributeError, KeyError) as error:
        raise ConfigError(_unknown_key(args, error)) from error
    except Exception as error:
        # The config file is a program; whatever it raises is its own to mend.
        reason = str(error).strip().splitlines()[-1].strip() if str(error).strip() else ""
        raise ConfigError(f"{_config_argument(args)} cannot be loaded ({type(error).__name__}: {reason})") from error
    if len(rest) > 1:
        raise flags.IllegalFlagValueError(f"{rest[1]!r} is no flag; flags look like --config.seed=1. For example: {example}")
    return from_config_dict(tree), values


def read_words(args: Sequence[str], values: flags.FlagValues, about: str) -> tuple[list[str], dict[str, Any]] | None:
    """What is no flag, and the values of the flags before and behind it; None where help was asked for, which is then printed.

    Args:
      args: command name, words and flags.
      values: the flags, defined.
      about: what help begins with.

    Raises:
      flags.Error: a flag is unknown or has no readable value.
    """
    if {"--help", "-h"} & set(args):
        print(f"{about}\n{values.get_help()}")
        return None
    values.set_gnu_getopt(True)
    words = values(list(args))[1:]
    return words, {name: values[name].value for name in values}


def read_one(
    args: Sequence[str], values: flags.FlagValues, about: str, example: str, required: Sequence[str], what: str
) -> tuple[str, dict[str, Any]] | None:
    """As `read_words`, of a command that takes exactly one word.

    Args:
      args: command name, word and flags.
      values: the flags, defined.
      about: what help begins with.
      example: a command line that is right, for messages.
      required: names of flags that must not be empty.
      what: what the word is, for messages.

    Raises:
      flags.Error: as `read_words`, or something is missing or too much.
    """
    found = read_words(args, values, about)
    if found is None:
        return None
    words, given = found
    if len(words) != 1:
        wrong = f"{words[1]!r} is one too many" if words else "it is missing"
        raise flags.IllegalFlagValueError(f"give {what} and flags ({wrong}); for example: {example}")
    require(given, required, example)
    return words[0], given


def read_own(
    args: Sequence[str], values: flags.FlagValues, about: str, example: str, required: Sequence[str]
) -> dict[str, Any] | None:
    """As `read_one`, of a command that takes flags alone."""
    found = read_words(args, values, about)
    if found is None:
        return None
    words, given = found
    if words:
        raise flags.IllegalFlagValueError(f"{words[0]!r} is no flag; for example: {example}")
    require(given, required, example)
    return given


def require(given: dict[str, Any], required: Sequence[str], example: str) -> None:
    """Raises flags.Error for the first of these flags that is empty; `example` is a command line that is right."""
    for name in required:
        if not given[name]:
            raise flags.IllegalFlagValueError(f"--{name} is missing; for example: {example}")


def _config_argument(args: Sequence[str]) -> str:
    return next(arg for arg in args if arg.startswith("--config"))


def _unknown_key(args: Sequence[str], error: Exception) -> str:
    """Says which override names no setting. ml_collections' error holds only the last part of its key."""
    first = re.search(r"\w+", str(error))
    name = first[0] if first else ""
    close = re.search(r'Did you mean "([^"]+)"', str(error))
    for arg in args:
        key = arg.removeprefix("--").split("=")[0]
        parts = key.split(".")
        if parts[0] == "config" and name in parts:
            parent = ".".join(parts[: parts.index(name)])
            if parts[-2:-1] == ["objectives"]:
                return (
                    f"{key} is not there yet; give all objectives at once: --{parent}=\"{{'next_token': 1.0, {name!r}: 1.0}}\""
                )
            return f"{key} is not a setting; " + (
                f"did you mean {parent}.{close[1]}?" if close else f"{parent} has no {name!r}"
            )
    return f"{_config_argument(args)} cannot be loaded ({type(error).__name__}: {error})"
