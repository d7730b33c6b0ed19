"""Oracle: a causal decoder that is given a memory of the very block it reads, future tokens included (Badger 2026, oracle memories).

How far its loss falls below that of the decoder alone says what the memory holds.

Shapes: B block, L token, K vector, E width of the vectors (encoder's or bottleneck's), D decoder width, V vocabulary,
T = K + L positions where the memory comes as tokens, L elsewhere.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Model
from memjax.layers import Embed, Head, Linear
from memjax.models.encoder import Encoder
from memjax.models.memory_model import EMBEDDING_INIT
from memjax.models.stack import make_stack


class Oracle(nn.Module):
    """Encoder over a whole block and decoder over the same block; a later token reaches a position through the memory only.

    `config.combine` is how the decoder is given the memory: `token`, as the first positions; `embedding`, its vectors side by side
    before the channels of every token's embedding, which is narrower by as much; `add`, mapped to the decoder's width and added to
    every token's embedding. Learned positions and task marks are not used: there are no slots and nothing but reading is asked.

    Attributes:
      config: the model's settings; a block is `config.chunk_length` tokens.
      vocabulary: V.
    """

    config: Model
    vocabulary: int

    @property
    def memory_positions(self) -> int:
        """Decoder positions before the first token."""
        return self.config.vectors if self.config.combine == "token" else 0

    def setup(self) -> None:
        config = self.config
        width, dtype = config.decoder.width, jnp.dtype(config.dtype)
        beside = config.combine == "embedding"
        self.encoder = Encoder(config, self.vocabulary, expand=not beside)
        if config.combine == "add" or (config.combine == "token" and config.encoder.width != width):
            self.bridge = Linear(width, use_bias=True, dtype=dtype)
        memory_width = config.vectors * (config.bottleneck or config.encoder.width) if beside else 0
        if memory_width >= width:
            raise ValueError(
                f"config.model.decoder.width={width} leaves no channel for tokens beside the {memory_width} of the memory that"
                f" config.model.combine='embedding' puts there; use more than {memory_width}"
            )
        self.embed = Embed(self.vocabulary, width - memory_width, dtype, EMBEDDING_INIT)
        self.backbone = make_stack(config, config.decoder, self.memory_positions + config.chunk_length)
        self.head = Head(width, self.vocabulary)

    def encode(self, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"] | None = None) -> Float[Array, "B K E"]:
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
        x = self._combine(self.embed(tokens), memory)
        if valid is None or "attended_padding" in self.config.compat:
            valid = jnp.ones(tokens.shape, bool)
        extra = self.memory_positions
        valid = jnp.pad(valid, ((0, 0), (extra, 0)), constant_values=True)
        # Positions count real tokens, so that padding on the left does not shift them.
        positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
        h = self.backbone(x, positions, valid)
        return h if with_memory else h[:, extra:]

    def _combine(self, x: jax.Array, memory: jax.Array) -> Float[Array, "B T D"]:
        """What the decoder reads: embedded tokens and memory."""
        if self.config.combine == "token":
            if self.config.encoder.width != self.config.decoder.width:
                memory = self.bridge(memory)
            return jnp.concatenate([memory.astype(x.dtype), x], axis=1)
        flat = memory.reshape(memory.shape[0], 1, -1).astype(x.dtype)
        if self.config.combine == "add":
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
          tokens: what the decoder is shown, the encoder's tokens or others, such as those shifted behind a start token.
          memory: from `encode`.
          valid: False where `tokens` is padding; ignored under the quirk `attended_padding`.
          with_memory: whether the positions that hold the memory come first in the result; only `token` has such positions.
        """
        return self.head(self.hidden(tokens, memory, valid, with_memory))

    def score(
        self,
        tokens: Int[Array, "B L"],
        labels: Int[Array, "B L"],
        memory: Float[Array, "B K E"],
        valid: Bool[Array, "B L"] | None = None,
    ) -> tuple[Float[Array, "B L"], Bool[Array, "B L"]]:
        """Nats of `labels` under `decode`'s logits, and whether each is the most likely token; never holds the logits."""
        return self.head.score(self.hidden(tokens, memory, valid), labels)

    def __call__(self, tokens: Int[Array, "B L"], valid: Bool[Array, "B L"] | None = None) -> Float[Array, "B L V"]:
        """Encodes and decodes the same tokens: logits at position t are about token t+1."""
        return self.decode(tokens, self.encode(tokens, valid), valid)
