"""Trained parameters, types of frozen ones, optimizers, learning-rate factors and weight decay, by
ordered rules on parameter paths.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from optax.contrib import MuonDimensionNumbers, muon

from memjax.config import ConfigError, Optimizer, Rules, Stage, match_rules
from memjax.layers.lora import is_adapter

MUON_MOMENTUM = 0.95

Tree = Mapping[str, Any]


def learning_rate(stage: Stage) -> optax.Schedule:
    """Return a linear warm-up from 1 / warmup_steps of the peak, then the stage's schedule.

    The last step has `final_lr_ratio` of the peak. A ratio of 0 is reached right after it, as
    published, so that no step is without effect.
    """
    peak, final = stage.learning_rate, stage.learning_rate * stage.final_lr_ratio
    rest = max(stage.steps - stage.warmup_steps - (final > 0), 1)
    after = {
        "cosine": optax.cosine_decay_schedule(peak, rest, alpha=stage.final_lr_ratio),
        "linear": optax.linear_schedule(peak, final, rest),
        "constant": optax.constant_schedule(peak),
    }[stage.lr_schedule]
    # Step 0 has 1 / warmup_steps of the peak, not 0, so that no step is wasted.
    warmup = optax.linear_schedule(
        peak / max(stage.warmup_steps, 1), peak, max(stage.warmup_steps - 1, 1)
    )
    return optax.join_schedules([warmup, after], [stage.warmup_steps])


def split(tree: Tree, rules: Rules, key: str) -> tuple[Tree, Tree]:
    """Split parameters into trainable and frozen ones; `merge` is the inverse.

    A parameter is trainable where its rule's value is True. LoRA factors are trainable, and the
    matrices that they adapt are frozen.
    """
    flat = flatten_dict(tree, sep="/")
    chosen = {path for path in flat if _trains(path, rules, key)}
    yes = {path: leaf for path, leaf in flat.items() if path in chosen}
    no = {path: leaf for path, leaf in flat.items() if path not in chosen}
    return unflatten_dict(yes, sep="/"), unflatten_dict(no, sep="/")


def _trains(path: str, rules: Rules, key: str) -> bool:
    return is_adapter(path) or match_rules(rules, path, key) is True


def stored_dtype(path: str, stage: Stage) -> np.dtype:
    """Return the type that a parameter of a stage is stored in: in memory and in checkpoints.

    It is float32 where the parameter is trained, and that of `stage.frozen_dtypes` elsewhere.
    """
    if _trains(path, stage.trainable, "trainable"):
        return np.dtype(np.float32)
    return jnp.dtype(match_rules(stage.frozen_dtypes, path, "frozen_dtypes"))


def as_stored(params: Tree, stage: Stage) -> Tree:
    """Return parameters of a stage, arrays or abstract, in the types that they are stored in."""
    flat = flatten_dict(params, sep="/")
    return unflatten_dict(
        {path: _cast(leaf, stored_dtype(path, stage)) for path, leaf in flat.items()}, sep="/"
    )


def _cast(leaf: Any, dtype: np.dtype) -> Any:
    abstract = isinstance(leaf, jax.ShapeDtypeStruct)
    return leaf.update(dtype=dtype) if abstract else leaf.astype(dtype)


def merge(first: Tree, second: Tree) -> Tree:
    """Merge two trees that share no leaf."""
    return unflatten_dict(
        {**flatten_dict(first, sep="/"), **flatten_dict(second, sep="/")}, sep="/"
    )


def make_optimizer(config: Optimizer, stage: Stage, params: Tree) -> optax.GradientTransformation:
    """Return a global-norm clip, then AdamW or Muon per parameter, by the rules.

    Args:
      config: rules and constants.
      stage: rate and schedule.
      params: the trainable parameters; only paths and shapes are read.

    Raises:
      ConfigError: no rule matches a parameter, or Muon is to update one that is not a matrix.
    """
    schedule = learning_rate(stage)
    flat = flatten_dict(params, sep="/")
    choice = {
        path: (
            match_rules(config.rules, path, "config.optimizer.rules"),
            float(match_rules(config.rate_rules, path, "config.optimizer.rate_rules")),
            float(match_rules(config.decay_rules, path, "config.optimizer.decay_rules")),
        )
        for path in flat
    }
    for path, (name, _, _) in choice.items():
        ConfigError.require(
            name != "muon" or flat[path].ndim >= 2,
            f"config.optimizer.rules give {path!r} of shape {flat[path].shape} to muon, which"
            " updates matrices only",
        )
    labels = unflatten_dict(
        {path: "/".join(map(str, label)) for path, label in choice.items()}, sep="/"
    )
    transforms: dict[Hashable, optax.GradientTransformation] = {
        "/".join(map(str, label)): _transform(config, schedule, *label)
        for label in dict.fromkeys(choice.values())
    }
    by_label = optax.partition(transforms, labels)
    return (
        optax.chain(optax.clip_by_global_norm(config.clip_norm), by_label)
        if config.clip_norm
        else by_label
    )


def _transform(
    config: Optimizer, schedule: optax.Schedule, name: str, factor: float, decay: float
) -> optax.GradientTransformation:
    rate: Callable[[Any], Any] = lambda step: factor * schedule(step)  # noqa: E731
    if name == "adamw":
        return optax.adamw(rate, config.beta1, config.beta2, config.epsilon, weight_decay=decay)
    return muon(
        rate, beta=MUON_MOMENTUM, weight_decay=decay, muon_weight_dimension_numbers=_all_matrices
    )


def _all_matrices(params: Any) -> Any:
    """Mark the last two axes as the matrix; axes before them (layers, heads) are a batch."""
    return jax.tree.map(lambda _: MuonDimensionNumbers(-2, -1), params)
