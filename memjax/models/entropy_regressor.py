"""Entropy regressor: one number per token, such as its entropy or its loss.

Source: Badger 2026, entropy estimation.

Shapes: B row, N token of a row, D width.
"""

from collections.abc import Iterator

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Config, Stage
from memjax.layers import Linear
from memjax.models.adapter import Adapter
from memjax.models.causal_lm import RowModule
from memjax.models.request import Requests
from memjax.models.uses import Use, decoder_uses


class EntropyRegressor(RowModule):
    """Token table, backbone, and a linear map to one number in place of a head."""

    def setup(self) -> None:
        super().setup()
        # In float32 whatever the backbone computes in, like logits.
        self.value = Linear(1, use_bias=True)

    def __call__(
        self, tokens: Int[Array, "B N"], valid: Bool[Array, "B N"] | None = None
    ) -> Float[Array, "B N"]:
        """Return estimates in float32, in the unit of their targets.

        Position t has read tokens 0..t; arguments as in `hidden`.
        """
        return self.value(self.hidden(tokens, valid))[..., 0]


def _uses(config: Config, stage: Stage, requests: Requests) -> Iterator[Use]:
    tokens = config.data.sequence_length
    yield from decoder_uses(
        config.model.decoder, stage.batch_size * len(requests), tokens, tokens, "value"
    )


ADAPTER = Adapter(
    name="entropy_regressor",
    module=EntropyRegressor,
    summary="A model that estimates, for each token, how hard it is.",
    capabilities=frozenset(("estimates", "reads_rows")),
    build=lambda config, stage: EntropyRegressor(
        config.model, config.data.sequence_length, config.data.vocab_size
    ),
    example=lambda config: jnp.zeros((1, config.data.sequence_length), jnp.int32),
    uses=_uses,
)
