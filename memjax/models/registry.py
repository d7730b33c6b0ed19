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


def find(family: str | nn.Module, key: str = "family") -> Adapter:
    """Return the adapter of a family, given by its name or by a module of it.

    Raises:
      ConfigError: there is no such family; `key` names the setting.
    """
    if isinstance(family, nn.Module):
        fitting = (a.name for a in FAMILIES.values() if isinstance(family, a.module))
        family = next(fitting, type(family).__name__)
    ConfigError.require(
        family in FAMILIES, f"{key}: {family!r}, expected one of {', '.join(FAMILIES)}"
    )
    return FAMILIES[family]


def can(family: str | nn.Module, capability: str) -> bool:
    """Return whether a family, or that of a module, has a capability (models/adapter.py)."""
    return capability in find(family).capabilities


def families_that(capability: str) -> tuple[str, ...]:
    """Return the names of all families with a capability."""
    return tuple(a.name for a in FAMILIES.values() if capability in a.capabilities)
