"""Causal language model: the decoder on its own, over a whole row (Badger 2026, baselines).

Shapes: B row, N token of a row, M of its positions that are scored, D width, V vocabulary.
"""

from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Config, Model, Stage
from memjax.layers import Embed, Head, make_backbone
from memjax.models.adapter import PREDICTOR_QUIRKS, Adapter, one_by_one
from memjax.models.encoder import EMBEDDING_INIT, require_places
from memjax.models.request import Asking, Request, Requests, Variables
from memjax.models.uses import Use, decoder_uses


class RowModule(nn.Module):
    """Token table and backbone over a whole row; the backbone is `config.decoder`.

    Attributes:
      config: the model's settings.
      length: N, tokens in a row; a mixer accepts no other.
      vocab_size: V.
    """

    config: Model
    length: int
    vocab_size: int

    def setup(self) -> None:
        decoder, dtype = self.config.decoder, jnp.dtype(self.config.dtype)
        self.embed = Embed(self.vocab_size, decoder.width, dtype, EMBEDDING_INIT)
        self.backbone = make_backbone(self.config, decoder, self.length)

    def hidden(
        self, tokens: Int[Array, "B N"], valid: Bool[Array, "B N"] | None = None
    ) -> Float[Array, "B N D"]:
        """States after each token.

        Args:
          tokens: ids.
          valid: False where a position is padding; None when there is none. Ignored under the quirk
            `attended_padding`.
        """
        require_places(tokens, self.length)
        if "attended_padding" in self.config.compat:
            valid = None
        return self.backbone(self.embed(tokens), valid=valid)


class CausalLM(RowModule):
    """Embed, backbone, head."""

    def setup(self) -> None:
        super().setup()
        decoder = self.config.decoder
        tied = self.embed if decoder.tie_embeddings else None
        self.head = Head(decoder.width, self.vocab_size, tied)

    def score(
        self,
        tokens: Int[Array, "B N"],
        labels: Int[Array, "B M"],
        valid: Bool[Array, "B N"] | None = None,
        start: int = 0,
    ) -> tuple[Float[Array, "B M"], Bool[Array, "B M"]]:
        """Nats of `labels`, and whether each is the most likely token; never holds the logits.

        Args:
          tokens: what is shown.
          labels: what follows positions start, start + 1, ...; the head is not applied to any other
            position.
          valid: False where a position is padding.
          start: the first position that is scored.
        """
        hidden_BND = self.hidden(tokens, valid)
        return self.head.token_losses(hidden_BND[:, start : start + labels.shape[1]], labels)

    def __call__(
        self, tokens: Int[Array, "B N"], valid: Bool[Array, "B N"] | None = None
    ) -> jax.Array:
        """Logits [B, N, V]; position t has read tokens 0..t."""
        return self.head(self.hidden(tokens, valid))


def _answer(asking: Asking, variables: Variables, request: Request) -> tuple[jax.Array, jax.Array]:
    """Score the labels, which follow the inputs from position `place` on."""
    inputs, labels, (start,) = request.inputs[:, 0], request.labels[:, 0], request.place
    nats, correct = asking.apply(
        variables, "score", inputs, labels, inputs != asking.ids.pad, start=int(start)
    )
    return nats[:, None], correct[:, None]


def _uses(config: Config, stage: Stage, requests: Requests) -> Iterator[Use]:
    for request in requests.values():
        yield from decoder_uses(
            config.model.decoder,
            stage.batch_size,
            config.data.sequence_length,
            request.labels.shape[-1],
        )


ADAPTER = Adapter(
    name="causal_lm",
    module=CausalLM,
    summary="A causal language model over tokens, the kind of decoder that memory models have,"
    " without memories.",
    capabilities=frozenset(("predicts", "copies", "predicts_rows", "reads_rows", "keeps_tokens")),
    build=lambda config, stage: CausalLM(
        config.model, config.data.sequence_length, config.data.vocab_size
    ),
    example=lambda config: jnp.zeros((1, config.data.sequence_length), jnp.int32),
    uses=_uses,
    answer=one_by_one(_answer),
    reads=PREDICTOR_QUIRKS,
)
