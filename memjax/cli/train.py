"""The command `memjax train --config=FILE --workdir=DIR [--config.KEY=VALUE ...]`."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from memjax.cli.allocator import keep_freed_memory
from memjax.config import Config, ConfigError, from_config_dict

EXAMPLE = "memjax train --config=configs/quickstart.py --workdir=runs/quickstart"


def read_flags(args: Sequence[str]) -> tuple[Config, Path]:
    """The checked config and the workdir of a command line.

    Args:
      args: command name and flags.

    Raises:
      flags.Error: a flag is unknown, missing or has no readable value.
      ConfigError: the file cannot be loaded, or a key is unknown or wrong.
    """
    args = list(args)
    given = {arg.split("=")[0] for arg in args}
    for name in ("config", "workdir"):
        if f"--{name}" not in given:
            raise flags.IllegalFlagValueError(f"--{name} is missing; for example: {EXAMPLE}")
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "The experiment: a file with get_config().", values, sys_argv=args)
    flags.DEFINE_string("workdir", None, "Where checkpoints, numbers and the page go.", flag_values=values)
    try:
        rest = values(args)
        tree: Any = values["config"].value
        workdir: Any = values["workdir"].value
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
        raise flags.IllegalFlagValueError(f"{rest[1]!r} is no flag; flags look like --config.seed=1. For example: {EXAMPLE}")
    return from_config_dict(tree), Path(workdir)


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


def run(args: Sequence[str]) -> int:
    """Trains, and prints what came of it."""
    config, workdir = read_flags(args)
    keep_freed_memory()
    from memjax.training import run_experiment  # Imports JAX: after the allocator is set and the flags are known to be right.

    run_experiment(config, workdir)
    return 0
