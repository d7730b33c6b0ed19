"""Next tokens whose losses are weighted by an attribution of every token, such as its entropy.

Source: Badger 2026, entropy-weighted training. In training, the nats of these objectives are the
training loss. In evaluation (no key) they are the plain cross entropy: models trained by different
weights are compared by one loss, and held-out sequences have no attributions.

Shapes: B row, N token of a row, X = 1.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from memjax.config import ConfigError
from memjax.models.request import Asking, Request
from memjax.objectives import next_token
from memjax.objectives.objective import Objective
from memjax.objectives.terms import Scores

VARIANTS: Mapping[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "complement_weighted": lambda nats, a: (1 - a) * nats,
    "ten_minus_weighted": lambda nats, a: (10 - a) * nats,
    "subtracted_weighted": lambda nats, a: nats - a,
    "distance_weighted": lambda nats, a: 2.5 * jnp.abs(nats - a),
    "below_six_weighted": lambda nats, a: jnp.where(a < 6, nats, 0.0),
}
"""Loss of a token from its nats and its attribution a, in the order of publication.

The first is for attributions scaled to [0, 1], the others for unscaled ones. The gradient of
`subtracted_weighted` is that of the plain loss."""


def weighted(name: str, plain: Scores, attribution: Float[Array, "B N"] | None) -> Scores:
    """Return next-token scores [B, 1, N] with nats weighted by the predicted token's attribution.

    The mean is over targets, so that weights near 0 make a loss small and do not enlarge the step.

    Args:
      name: one of `VARIANTS`.
      plain: scores of `next_token`.
      attribution: of the prediction of token n, at index n; ignored at padding.

    Raises:
      ConfigError: there is no attribution.
    """
    a_BXN = known_attribution(name, attribution, plain.weight)
    return dataclasses.replace(plain, nats=VARIANTS[name](plain.nats, a_BXN))


def known_attribution(
    name: str, attribution: Float[Array, "B N"] | None, weight: Float[Array, "B 1 N"]
) -> Float[Array, "B 1 N"]:
    """Return the attribution of every token that counts, and 0 elsewhere.

    Values at padding, which may be anything, cannot enter a sum.

    Raises:
      ConfigError: there is none; `name` is the objective that needs it.
    """
    if attribution is None:
        raise ConfigError(
            f"objective {name!r}: got no attributions, expected one per token. Set"
            " config.data.attributions to their file"
        )
    return jnp.where(weight > 0, attribution[:, None].astype(jnp.float32), 0.0)


def _loss(name: str, asking: Asking, request: Request, scores: Scores) -> Scores:
    if asking.key is None:
        return scores
    attribution = asking.batch.attribution
    if attribution is not None and "unscored_first_tokens" in asking.stage.compat:
        # Labels stand one position earlier than their tokens.
        attribution = jnp.pad(attribution[:, 1:], ((0, 0), (0, 1)))
    return weighted(name, scores, attribution)


OBJECTIVES = tuple(
    Objective(
        name,
        needs="predicts_rows",
        request=next_token.request,
        loss=functools.partial(_loss, name),
        shares="next_token",
        held_out="next_token",
        reads_attribution=True,
    )
    for name in VARIANTS
)
