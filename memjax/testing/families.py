"""Families of models and objectives as tests go through them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from memjax.config import Stage
from memjax.models import FAMILIES
from memjax.objectives import OBJECTIVES, SpecialIds, build_requests, of_family, weights

FAMILY_OBJECTIVES = {family: of_family(family) for family in FAMILIES}
"""Objectives that each family can be trained for."""
WEIGHTINGS = tuple(name for name, o in OBJECTIVES.items() if o.reads_attribution and o.held_out)
"""Next-token losses that are weighted by an attribution."""
REGRESSIONS = tuple(name for name, o in OBJECTIVES.items() if o.held_out is None)
"""Estimates of an attribution."""
_DEFAULT = Stage()


def weights_of(
    module: Any, batch: Any, names: Sequence[str], ids: SpecialIds, stage: Stage = _DEFAULT
) -> dict[str, jax.Array]:
    """Return how much each position counts per objective."""
    return weights(build_requests(module, batch, names, ids, stage), names)


def counts_of(
    module: Any, batch: Any, names: Sequence[str], ids: SpecialIds, stage: Stage = _DEFAULT
) -> dict[str, jax.Array]:
    """Return how many tokens each objective scores."""
    weighed = weights_of(module, batch, names, ids, stage)
    return {name: jnp.sum(weight) for name, weight in weighed.items()}
