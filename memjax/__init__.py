"""memjax: memory models for language in JAX and Flax.

The names below are the public ones; they are imported when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from memjax import config, instruments, objectives
    from memjax.layers import Backbone
    from memjax.loading import load
    from memjax.models import (
        Autoencoder,
        CausalLM,
        Encoder,
        EntropyRegressor,
        MemoryModel,
        Oracle,
        Ranker,
        RecurrentMemory,
        Retriever,
    )
    from memjax.training import run_experiment

_HOME = {
    "Autoencoder": "memjax.models",
    "Backbone": "memjax.layers",
    "CausalLM": "memjax.models",
    "Encoder": "memjax.models",
    "EntropyRegressor": "memjax.models",
    "MemoryModel": "memjax.models",
    "Oracle": "memjax.models",
    "Ranker": "memjax.models",
    "RecurrentMemory": "memjax.models",
    "Retriever": "memjax.models",
    "load": "memjax.loading",
    "run_experiment": "memjax.training",
}
_MODULES = ("config", "instruments", "objectives")

__all__ = [
    "Autoencoder",
    "Backbone",
    "CausalLM",
    "Encoder",
    "EntropyRegressor",
    "MemoryModel",
    "Oracle",
    "Ranker",
    "RecurrentMemory",
    "Retriever",
    "config",
    "instruments",
    "load",
    "objectives",
    "run_experiment",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"memjax.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'memjax' has no attribute {name!r}; its names are {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
