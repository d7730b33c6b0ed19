"""Oracle: a causal decoder reads a memory of the very block that it predicts.

The memory includes future tokens. The difference between its loss and that of the decoder alone
measures what the memory holds (Badger 2026, oracle memories).

Shapes: B block, L token, K vector, E width of the vectors (encoder's or bottleneck's), D decoder
width, V vocabulary, T = K + L positions where the memory comes as tokens, L elsewhere.
"""

from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Config, ConfigError, Model, Stage
from memjax.layers import Embed, Head, Linear, make_backbone
from memjax.models.adapter import ENCODER_READS, PREDICTOR_QUIRKS, Adapter, one_by_one
from memjax.models.encoder import Encoder, fold, read_positions, require_places, unfold
from memjax.models.memory_model import UNIT_INIT
from memjax.models.request import Asking, Request, Requests, Variables
from memjax.models.uses import Use, decoder_uses, encoder_uses


class Oracle(nn.Module):
    """Encoder over a whole block, and decoder over the same block.

    A later token reaches a position through the memory only.

    `config.memory_injection` is how the decoder is given the memory: `token`, as the first
    positions; `embedding`, its vectors side by side before the channels of every token's embedding,
    which is narrower by as much; `add`, mapped to the decoder's width and added to every token's
    embedding. Learned positions and task marks are not used: there are no slots, and the only
    task is to predict.

    Attributes:
      config: the model's settings; a block is `config.chunk_length` tokens.
      vocab_size: V.
    """

    config: Model
    vocab_size: int

    @property
    def memory_positions(self) -> int:
        """Return the number of decoder positions before the first token."""
        return self.config.memory_vectors if self.config.memory_injection == "token" else 0

    def setup(self) -> None:
        config = self.config
        width, dtype = config.decoder.width, jnp.dtype(config.dtype)
        self.encoder = Encoder(
            config, self.vocab_size, expand=config.memory_injection != "embedding"
        )
        if config.memory_injection == "add" or (
            config.memory_injection == "token" and config.encoder.width != width
        ):
            self.bridge = Linear(width, use_bias=True, dtype=dtype)
        token_width = width - _beside(config)
        self.embed = Embed(self.vocab_size, token_width, dtype, UNIT_INIT)
        self.backbone = make_backbone(
            config, config.decoder, self.memory_positions + config.chunk_length
        )
        self.head = Head(width, self.vocab_size)

    def encode(
        self, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"] | None = None
    ) -> Float[Array, "B K E"]:
        """The memory of each block; at the bottleneck's width for `embedding`."""
        return self.encoder(tokens, valid)

    def hidden(
        self,
        tokens: Int[Array, "B L"],
        memory: Float[Array, "B K E"],
        valid: Bool[Array, "B L"] | None = None,
        with_memory: bool = False,
    ) -> Float[Array, "B L D"] | Float[Array, "B T D"]:
        """Decoder states; arguments as in `decode`."""
        require_places(tokens, self.config.chunk_length)
        x = self._combine(self.embed(tokens), memory)
        extra, valid = self.memory_positions, read_positions(self.config, tokens, valid)
        valid = jnp.pad(valid, ((0, 0), (extra, 0)), constant_values=True)
        # Of all positions, which an instrument may mask the memory's of.
        positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
        h = self.backbone(x, positions, valid)
        return h if with_memory else h[:, extra:]

    def _combine(self, x: jax.Array, memory: jax.Array) -> Float[Array, "B T D"]:
        """Return the inputs of the decoder: embedded tokens and memory."""
        if self.config.memory_injection == "token":
            if self.config.encoder.width != self.config.decoder.width:
                memory = self.bridge(memory)
            return jnp.concatenate([memory.astype(x.dtype), x], axis=1)
        flat = memory.reshape(memory.shape[0], 1, -1).astype(x.dtype)
        if self.config.memory_injection == "add":
            return x + self.bridge(flat)
        return jnp.concatenate([jnp.broadcast_to(flat, (*x.shape[:2], flat.shape[-1])), x], axis=-1)

    def decode(
        self,
        tokens: Int[Array, "B L"],
        memory: Float[Array, "B K E"],
        valid: Bool[Array, "B L"] | None = None,
        with_memory: bool = False,
    ) -> Float[Array, "B L V"] | Float[Array, "B T V"]:
        """Logits; position t has read tokens 0..t and the memory.

        Args:
          tokens: what the decoder is shown, the encoder's tokens or others, such as those shifted
            behind a start token.
          memory: from `encode`.
          valid: False where `tokens` is padding; ignored under the quirk `attended_padding`.
          with_memory: whether the positions that hold the memory come first in the result; only
            `token` has such positions.
        """
        return self.head(self.hidden(tokens, memory, valid, with_memory))

    def score(
        self,
        tokens: Int[Array, "B L"],
        labels: Int[Array, "B L"],
        memory: Float[Array, "B K E"],
        valid: Bool[Array, "B L"] | None = None,
    ) -> tuple[Float[Array, "B L"], Bool[Array, "B L"]]:
        """Return nats of `labels`, and whether each is the most likely token.

        Both are those of `decode`; the logits are never held.
        """
        return self.head.token_losses(self.hidden(tokens, memory, valid), labels)

    def __call__(
        self, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"] | None = None
    ) -> Float[Array, "B L V"]:
        """Encodes and decodes the same tokens: logits at position t are about token t+1."""
        return self.decode(tokens, self.encode(tokens, valid), valid)


def _answer(asking: Asking, variables: Variables, request: Request) -> tuple[jax.Array, jax.Array]:
    """Call encoder and decoder once; blocks do not see each other."""
    encoded, inputs, batch = fold(asking.chunks), fold(request.inputs), len(request.inputs)
    memory = asking.apply(variables, "encode", encoded, encoded != asking.ids.pad)
    nats, correct = asking.apply(
        variables, "score", inputs, fold(request.labels), memory, inputs != asking.ids.pad
    )
    return unfold(nats, batch), unfold(correct, batch)


def _uses(config: Config, stage: Stage, requests: Requests) -> Iterator[Use]:
    model, blocks = config.model, stage.batch_size * config.chunks
    yield from encoder_uses(config, blocks)
    injected = model.memory_vectors if model.memory_injection == "token" else 1
    yield Use("bridge", "bridge", blocks * injected)
    positions = Oracle(model, config.data.vocab_size).memory_positions + model.chunk_length
    yield from decoder_uses(model.decoder, blocks, positions, model.chunk_length)


def _check(config: Config, stage: Stage, key: str) -> None:
    ConfigError.require(
        not _beside(config.model) or "residual_noise" not in config.model.compat,
        "config.model.memory_injection='embedding' has no map back to the memory's width, which"
        " residual_noise of config.model.compat needs; use 'token' or 'add'",
    )


def _beside(model: Model) -> int:
    """Return the channels that a memory takes beside the embedding of every token."""
    if model.memory_injection != "embedding":
        return 0
    beside = model.memory_vectors * (model.bottleneck or model.encoder.width)
    ConfigError.require(
        beside < model.decoder.width,
        f"config.model.decoder.width={model.decoder.width} leaves no room for token embeddings"
        f" beside a memory of {beside}, which config.model.memory_injection='embedding' puts there;"
        f" use more than {beside}",
    )
    return beside


ADAPTER = Adapter(
    name="oracle",
    module=Oracle,
    summary="A causal decoder that is also given a memory of the text it is to predict.",
    capabilities=frozenset(("encodes", "predicts", "reads_own_memory")),
    build=lambda config, stage: Oracle(config.model, config.data.vocab_size),
    example=lambda config: jnp.zeros((1, config.model.chunk_length), jnp.int32),
    uses=_uses,
    answer=one_by_one(_answer),
    reads=ENCODER_READS | PREDICTOR_QUIRKS | {"memory_injection"},
    untied=("encoder", "decoder"),
    check=_check,
)
