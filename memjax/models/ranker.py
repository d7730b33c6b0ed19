"""Ranker: a transformer compares the memories of a query and of its candidates.

Source: Badger 2026, retrieval.

Shapes: B sequence, C candidate, M chunk to encode, L token, K vector, E encoder width, D decoder
width.
"""

import dataclasses
from collections.abc import Iterator

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Backbone as BackboneConfig
from memjax.config import Config, ConfigError, Model, Stage
from memjax.layers import Linear, make_backbone
from memjax.models.adapter import ENCODER_READS, Adapter
from memjax.models.encoder import Encoder, fold, unfold
from memjax.models.memory_model import UNIT_INIT
from memjax.models.request import Requests
from memjax.models.retriever import QueryDials
from memjax.models.uses import Use, decoder_uses, encoder_uses

MASKED = -1e30
"""Logit of a candidate that is none; finite, so that a row without candidates has no NaN."""


class Ranker(nn.Module):
    """A transformer over the memories of a query and its candidates that scores each candidate.

    It reads a set: positions have no order, only the query has a learned mark, and all read
    all. Scores therefore follow the candidates into any order, and a set may have any size.
    `config.decoder` sets the transformer up, whose last norm is the module's own: without a bias,
    since what all candidates' scores share has no gradient.

    Attributes:
      config: the model's settings.
      candidates: C, chunks in a row.
      vocab_size: V.
    """

    config: Model
    candidates: int
    vocab_size: int

    def setup(self) -> None:
        config, decoder = self.config, self.config.decoder
        _check_decoder(decoder)
        dtype = jnp.dtype(config.dtype)
        self.encoder = Encoder(config, self.vocab_size)
        if config.memory_vectors * config.encoder.width != decoder.width:
            self.bridge = Linear(decoder.width, use_bias=True, dtype=dtype)
        self.query_mark = self.param("query_mark", UNIT_INIT, (decoder.width,))
        transformer = dataclasses.replace(decoder, causal=False, final_norm=False)
        self.backbone = make_backbone(config, transformer, 1 + self.candidates)
        if decoder.norm == "rms":
            self.norm = nn.RMSNorm(epsilon=decoder.epsilon, dtype=dtype)
        else:
            self.norm = nn.LayerNorm(epsilon=decoder.epsilon, use_bias=False, dtype=dtype)
        self.score = Linear(1)

    def encode(
        self, tokens: Int[Array, "B M L"], valid: Bool[Array, "B M L"] | None = None
    ) -> Float[Array, "B M K E"]:
        """Memories of all given chunks, queries and candidates alike, in one call."""
        return unfold(
            self.encoder(fold(tokens), None if valid is None else fold(valid)), tokens.shape[0]
        )

    def rank(
        self,
        query: Float[Array, "B K E"],
        candidates: Float[Array, "B C K E"],
        valid: Bool[Array, "B C"] | None = None,
    ) -> Float[Array, "B C"]:
        """Return logits in float32 of the candidate that matches the query.

        Args:
          query: memory of the query, from `encode`.
          candidates: memories of the candidates.
          valid: False where a candidate is none: no other reads it, and its logit is `MASKED`.
        """
        batch, n = candidates.shape[:2]
        x = jnp.concatenate([query[:, None], candidates], axis=1).reshape(batch, 1 + n, -1)
        if x.shape[-1] != self.config.decoder.width:
            x = self.bridge(x)
        x = x.at[:, 0].add(self.query_mark.astype(x.dtype))
        if valid is None:
            valid = jnp.ones((batch, n), bool)
        read = jnp.pad(valid, ((0, 0), (1, 0)), constant_values=True)
        h = self.norm(self.backbone(x, jnp.zeros(read.shape, jnp.int32), read))
        return jnp.where(valid, self.score(h[:, 1:])[..., 0], MASKED)

    def __call__(
        self, tokens: Int[Array, "B C L"], valid: Bool[Array, "B C L"] | None = None
    ) -> Float[Array, "B C"]:
        """Return the logits of a sequence's chunks; its first chunk is the query."""
        memories = self.encode(tokens, valid)
        return self.rank(memories[:, 0], memories, None if valid is None else valid.any(axis=-1))


def _uses(config: Config, stage: Stage, requests: Requests) -> Iterator[Use]:
    rows, chunks, calls = stage.batch_size, config.chunks, len(requests)
    yield from encoder_uses(config, rows * (chunks + calls))
    yield Use("bridge", "bridge", rows * calls * (1 + chunks))
    everyone = dataclasses.replace(config.model.decoder, causal=False)
    yield from decoder_uses(everyone, rows * calls, 1 + chunks, chunks, "score")


def _check_decoder(decoder: BackboneConfig) -> None:
    ConfigError.require(
        decoder.kind == "transformer",
        f"config.model.decoder.kind={decoder.kind!r} cannot rank a set: its weights belong to"
        " positions; a ranker needs 'transformer'",
    )
    ConfigError.require(
        decoder.final_norm,
        "config.model.decoder.final_norm=False cannot rank a set: a ranker scores normalised"
        " states; use True",
    )


ADAPTER = Adapter(
    name="ranker",
    module=Ranker,
    summary="A model that reads a query's and passages' memories and scores which passage answers.",
    capabilities=frozenset(("encodes", "ranks", "reads_chunks")),
    build=lambda config, stage: Ranker(config.model, config.chunks, config.data.vocab_size),
    example=lambda config: jnp.zeros((1, config.chunks, config.model.chunk_length), jnp.int32),
    uses=_uses,
    reads=ENCODER_READS,
    untied=("encoder",),
    dials=QueryDials,
    check=lambda config, stage, key: _check_decoder(config.model.decoder),
)
