"""Every setting of a run and every check on it.

A config file (`configs/*.py`) builds a `Config` and converts it by `to_config_dict`. The command
line changes single keys of the result (`--config.data.corpus=PATH`). `from_config_dict` checks it
and freezes it again, so that a run uses only the frozen, checked form.
"""

from memjax.config.checks import check
from memjax.config.choices import (
    FREEZING,
    FUNCTION_QUIRKS,
    HUGGINGFACE,
    MODEL_QUIRKS,
    REPEATS,
    SHARDING,
    STAGE_QUIRKS,
    Rules,
)
from memjax.config.model import Backbone, Model, reading
from memjax.config.settings import (
    MESHES,
    Config,
    ConfigError,
    Data,
    Evaluator,
    Mesh,
    Optimizer,
    Source,
    Stage,
    match_rules,
    usual_evaluators,
)
from memjax.config.tree import differences, from_config_dict, from_json, to_config_dict, to_json

__all__ = [
    "FREEZING",
    "FUNCTION_QUIRKS",
    "HUGGINGFACE",
    "MESHES",
    "MODEL_QUIRKS",
    "REPEATS",
    "SHARDING",
    "STAGE_QUIRKS",
    "Backbone",
    "Config",
    "ConfigError",
    "Data",
    "Evaluator",
    "Mesh",
    "Model",
    "Optimizer",
    "Rules",
    "Source",
    "Stage",
    "check",
    "differences",
    "from_config_dict",
    "from_json",
    "match_rules",
    "reading",
    "to_config_dict",
    "to_json",
    "usual_evaluators",
]
