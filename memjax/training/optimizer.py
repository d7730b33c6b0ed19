"""From gradients to updates: optimizer, learning-rate factor and weight decay by ordered rules on parameter paths."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from optax.contrib import MuonDimensionNumbers, muon

from memjax.config import ConfigError, Optimizer, Rules, Stage, match_rules
from memjax.layers.lora import is_adapter

MUON_MOMENTUM = 0.95

Tree = Mapping[str, Any]


def learning_rate(stage: Stage) -> optax.Schedule:
    """Linear warm-up to the peak, from its first share of 1 / warmup_steps, then the stage's decay to `final_rate` of it at the last step."""
    peak, final = stage.learning_rate, stage.learning_rate * stage.final_rate
    rest = max(stage.steps - stage.warmup_steps, 1)
    after = {
        "cosine": optax.cosine_decay_schedule(peak, rest, alpha=stage.final_rate),
        "linear": optax.linear_schedule(peak, final, rest),
        "constant": optax.constant_schedule(peak),
    }[stage.decay]
    # Step 0 is given 1/warmup of the peak, not 0, so that no step is wasted.
    warmup = optax.linear_schedule(peak / max(stage.warmup_steps, 1), peak, max(stage.warmup_steps - 1, 1))
    return optax.join_schedules([warmup, after], [stage.warmup_steps])


def split(tree: Tree, rules: Rules, key: str) -> tuple[Tree, Tree]:
    """(leaves whose rule says True, the others), as two trees; `merge` puts them together again.

    Adapters move. A matrix that has them stays, as does what a rank was given to and has none.
    """
    flat = flatten_dict(tree, sep="/")
    chosen = {path for path in flat if is_adapter(path) or match_rules(rules, path, key) is True}
    yes = {path: leaf for path, leaf in flat.items() if path in chosen}
    no = {path: leaf for path, leaf in flat.items() if path not in chosen}
    return unflatten_dict(yes, sep="/"), unflatten_dict(no, sep="/")


def merge(first: Tree, second: Tree) -> Tree:
    """One tree of two that share no leaf."""
    return unflatten_dict({**flatten_dict(first, sep="/"), **flatten_dict(second, sep="/")}, sep="/")


def make_optimizer(config: Optimizer, stage: Stage, params: Tree) -> optax.GradientTransformation:
    """Global-norm clip, then AdamW or Muon for each parameter as the rules say.

    Args:
      config: rules and constants.
      stage: rate and schedule.
      params: the trainable parameters; only paths and shapes are read.

    Raises:
      ConfigError: no rule matches a parameter, or Muon is asked to update something that is not a matrix.
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
        if name == "muon" and flat[path].ndim < 2:
            raise ConfigError(
                f"config.optimizer.rules give {path!r} of shape {flat[path].shape} to muon, which updates matrices only"
            )
    labels = unflatten_dict({path: "/".join(map(str, label)) for path, label in choice.items()}, sep="/")
    transforms: dict[Hashable, optax.GradientTransformation] = {
        "/".join(map(str, label)): _transform(config, schedule, *label) for label in set(choice.values())
    }
    by_label = optax.partition(transforms, labels)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), by_label) if config.clip_norm else by_label


def _transform(
    config: Optimizer, schedule: optax.Schedule, name: str, factor: float, decay: float
) -> optax.GradientTransformation:
    rate: Callable[[Any], Any] = lambda step: factor * schedule(step)  # noqa: E731
    if name == "adamw":
        return optax.adamw(rate, config.beta1, config.beta2, config.epsilon, weight_decay=decay)
    return muon(rate, beta=MUON_MOMENTUM, weight_decay=decay, muon_weight_dimension_numbers=_all_matrices)


def _all_matrices(params: Any) -> Any:
    """The last two axes are the matrix; those before them (layers, heads) are a batch of matrices."""
    return jax.tree.map(lambda _: MuonDimensionNumbers(-2, -1), params)
