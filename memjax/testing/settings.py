"""A valid config, and the same with some settings changed."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from memjax.config import Config, ConfigError, Stage
from memjax.objectives import load_config

LANGUAGE_MODEL = Stage(objectives={"next_token": 1.0})
AUTOENCODER = Stage(family="autoencoder", objectives={"reconstruction": 1.0})
VALID = Config(
    stages={
        "auto": AUTOENCODER,
        "main": dataclasses.replace(LANGUAGE_MODEL, init_from="auto", init_part="encoder"),
        "control": LANGUAGE_MODEL,
    },
    curriculum=("auto", "main"),
    controls=("control",),
)


def tree_with(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The valid config as plain dicts, with the values at the given dotted keys replaced."""
    tree = dataclasses.asdict(VALID)
    for key, value in changes.items():
        *path, last = key.split(".")
        branch: Any = tree
        for part in path:
            branch = branch[part]
        branch[last] = value
    return tree


def message_of(changes: Mapping[str, Any]) -> str:
    """The error of the valid config with these changes."""
    try:
        load_config(tree_with(changes))
    except ConfigError as error:
        return str(error)
    raise AssertionError(f"{dict(changes)}: no error")
