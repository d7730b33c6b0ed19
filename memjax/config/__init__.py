"""Every setting of a run and every check on it.

A config file (`configs/*.py`) builds a `Config` and hands it to ml_collections by `to_config_dict`; the command line changes
single keys of that (`--config.data.corpus=PATH`); `from_config_dict` checks the result and freezes it again. What runs is
always the frozen, checked form.
"""

from memjax.config.checks import check
from memjax.config.settings import (
    FAMILIES,
    FREEZING,
    FUNCTION_QUIRKS,
    MESHES,
    MODEL_QUIRKS,
    OBJECTIVES,
    PRETRAINED,
    REGRESSIONS,
    REPEATS,
    SHARDING,
    STAGE_QUIRKS,
    WEIGHTINGS,
    Backbone,
    Config,
    ConfigError,
    Data,
    Mesh,
    Model,
    Optimizer,
    Rules,
    Stage,
    match_rules,
)
from memjax.config.tree import differences, from_config_dict, from_json, to_config_dict, to_json

__all__ = [
    "FAMILIES",
    "FREEZING",
    "FUNCTION_QUIRKS",
    "MESHES",
    "MODEL_QUIRKS",
    "OBJECTIVES",
    "PRETRAINED",
    "REGRESSIONS",
    "REPEATS",
    "SHARDING",
    "STAGE_QUIRKS",
    "WEIGHTINGS",
    "Backbone",
    "Config",
    "ConfigError",
    "Data",
    "Mesh",
    "Model",
    "Optimizer",
    "Rules",
    "Stage",
    "check",
    "differences",
    "from_config_dict",
    "from_json",
    "match_rules",
    "to_config_dict",
    "to_json",
]
