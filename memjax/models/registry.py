"""The families of models: one line per family.

To add a family, write one file with its module and its `Adapter`, and add one line here.
"""

import flax.linen as nn

from memjax.config import ConfigError
from memjax.models import (
    autoencoder,
    causal_lm,
    entropy_regressor,
    memory_model_adapter,
    oracle,
    ranker,
    recurrent_memory,
    retriever,
)
from memjax.models.adapter import Adapter
from memjax.models.peers import PEERS

FAMILIES: dict[str, Adapter] = {
    adapter.name: adapter
    for adapter in (
        autoencoder.ADAPTER,
        memory_model_adapter.ADAPTER,
        causal_lm.ADAPTER,
        oracle.ADAPTER,
        recurrent_memory.ADAPTER,
        retriever.ADAPTER,
        ranker.ADAPTER,
        entropy_regressor.ADAPTER,
    )
}
"""Families by name, the values of `config.stages.NAME.family`."""


def known() -> dict[str, Adapter]:
    """Return our families and the field's other memories, by name."""
    return {**FAMILIES, **PEERS}


def find(family: str | nn.Module, key: str = "family") -> Adapter:
    """Return the adapter of a family, given by its name or by a module of it.

    Raises:
      ConfigError: there is no such family; `key` names the setting.
    """
    named = known()
    if isinstance(family, nn.Module):
        # A peer may be built on another one: the class itself counts first.
        kind, fallback = type(family), type(family).__name__
        exact = (a.name for a in named.values() if a.module is kind)
        fitting = (a.name for a in named.values() if isinstance(family, a.module))
        family = next(exact, None) or next(fitting, fallback)
    ConfigError.require(
        family in named,
        f"{key}: {family!r}, expected a name of `memjax compare --list` or one of"
        f" {', '.join(FAMILIES)}",
    )
    return named[family]


def can(family: str | nn.Module, capability: str) -> bool:
    """Return whether a family, or that of a module, has a capability (models/adapter.py)."""
    return capability in find(family).capabilities


def families_that(capability: str) -> tuple[str, ...]:
    """Return the names of all families with a capability."""
    return tuple(a.name for a in FAMILIES.values() if capability in a.capabilities)
