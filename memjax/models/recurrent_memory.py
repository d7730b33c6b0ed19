"""Recurrent memory transformer (Bulatov et al. 2022, arXiv 2207.06881), of any backbone (Badger 2026, baselines).

Chunks are read one after another by one backbone, and nothing but K vectors goes from a chunk to the next. A chunk is the sequence

    [K read slots; L tokens; K write slots]

in which both kinds of slots are given the state. What the backbone returns at the write slots is the next state; the first one is
learned. The sequence is causal, so tokens see the read slots and write slots see everything.

The last read slot scores the chunk's first token, and each token the one after it: every token is a target, also the first, and every
token is read by the memory, also the last. That needs no start token.

Shapes: B row, C chunk of the row, L token, K vector, D width, V vocabulary, T = K + L + K positions (1 + L as published).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Model
from memjax.layers import Embed, Head
from memjax.models.encoder import EMBEDDING_INIT
from memjax.models.stack import make_stack


class RecurrentMemory(nn.Module):
    """Embed, backbone and head over chunks in turn; the backbone is `config.decoder`, K is `config.vectors`.

    With `config.truncate` = n > 0 the state that enters chunk n, 2n, 3n, ... is cut off from its past. A chunk's loss then reaches
    the chunks from the last such one to itself, so n at most; at n = 1 no loss reaches what was written. 0 cuts nothing.

    The quirk `overwritten_write_slot` puts the write slot over the chunk's last token, which is then read by nobody, masks nothing,
    and starts from a constant, ones in a transformer and zeros in a mixer (Badger 2026, published code). It needs K = 1, and its
    loss leaves out each chunk's first token.

    Attributes:
      config: the model's settings.
      chunks: C, chunks in a row; the weights fit any number.
      vocabulary: V.
    """

    config: Model
    chunks: int
    vocabulary: int

    @property
    def overwrites(self) -> bool:
        """Whether the write slot stands in place of the last token."""
        return "overwritten_write_slot" in self.config.compat

    @property
    def length(self) -> int:
        """T: positions the backbone runs over."""
        return 2 * self.config.vectors + self.config.chunk_length - self.overwrites

    def setup(self) -> None:
        config = self.config
        width, dtype = config.decoder.width, jnp.dtype(config.dtype)
        if self.overwrites and config.vectors != 1:
            raise ValueError(
                f"overwritten_write_slot needs vectors=1, not {config.vectors}: one token of a chunk is overwritten"
            )
        self.embed = Embed(self.vocabulary, width, dtype, EMBEDDING_INIT)
        if not self.overwrites:
            self.start = self.param("start", EMBEDDING_INIT, (config.vectors, width))
        self.backbone = make_stack(config, config.decoder, self.length)
        self.head = Head(width, self.vocabulary)

    def states(self, tokens: Int[Array, "B C L"], valid: Bool[Array, "B C L"] | None = None) -> Float[Array, "B C T D"]:
        """What the backbone returns at all positions of all chunks; arguments as in `__call__`."""
        batch, chunks, _ = tokens.shape
        valid = jnp.ones(tokens.shape, bool) if valid is None or not self._masks else valid
        read_BC = valid.any(axis=-1)
        if self.overwrites:
            tokens, valid = tokens[..., :-1], valid[..., :-1]
        truncate, chunk = self.config.truncate, jnp.arange(chunks)
        cut_C = (chunk > 0) & (chunk % truncate == 0) if truncate else jnp.zeros(chunks, bool)
        scan = nn.scan(
            RecurrentMemory._chunk,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=(1, 1, 1, 0),
            out_axes=1,
        )
        x_BCLD = self.embed(tokens)
        state = jnp.broadcast_to(self._first().astype(x_BCLD.dtype), (batch, self.config.vectors, x_BCLD.shape[-1]))
        _, h = scan(self, state, x_BCLD, valid, read_BC, cut_C)
        return h

    @property
    def _masks(self) -> bool:
        return not self.overwrites and "attended_padding" not in self.config.compat

    def _first(self) -> Float[Array, "K D"]:
        """The state before the first chunk."""
        if not self.overwrites:
            return self.start
        constant = 1.0 if self.config.decoder.kind == "transformer" else 0.0
        return jnp.full((self.config.vectors, self.config.decoder.width), constant)

    def _chunk(
        self, state_BKD: jax.Array, x_BLD: jax.Array, valid_BL: jax.Array, read_B: jax.Array, cut: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The state after one chunk, and what the backbone returns."""
        vectors = self.config.vectors
        state = jnp.where(cut, jax.lax.stop_gradient(state_BKD), state_BKD)
        valid = jnp.pad(valid_BL, ((0, 0), (vectors, vectors)), constant_values=True)
        # Positions count slots and real tokens, so that padding on the left does not shift them.
        h = self.backbone(jnp.concatenate([state, x_BLD, state], axis=1), jnp.cumsum(valid, axis=1) - 1, valid)
        # A chunk of padding alone writes nothing.
        return jnp.where(read_B[:, None, None], h[:, -vectors:], state), h

    def hidden(self, tokens: Int[Array, "B C L"], valid: Bool[Array, "B C L"] | None = None) -> Float[Array, "B C L D"]:
        """States that score: the one at t has read the chunk's tokens 0..t-1 and scores token t.

        It is taken where the last real token before t stands, or the last read slot, so that padding before t changes nothing.
        """
        h_BCTD = self.states(tokens, valid)
        first, length = self.config.vectors - 1, tokens.shape[-1]
        if valid is None or not self._masks:
            return h_BCTD[:, :, first : first + length]
        at_L = jnp.arange(first, first + length)
        real_BCL = jnp.pad(valid[..., :-1], ((0, 0), (0, 0), (1, 0)), constant_values=True)
        at_BCL = jax.lax.cummax(jnp.where(real_BCL, at_L, first), axis=2)
        return jnp.take_along_axis(h_BCTD, at_BCL[..., None], axis=2)

    def score(
        self, tokens: Int[Array, "B C L"], valid: Bool[Array, "B C L"] | None = None
    ) -> tuple[Float[Array, "B C L"], Bool[Array, "B C L"]]:
        """Nats of each token given those before it in its chunk and the state, and whether it is the most likely one.

        Never holds the logits.
        """
        h = self.hidden(tokens, valid)
        flat = (tokens.shape[0], -1)
        nats, correct = self.head.score(h.reshape(*flat, h.shape[-1]), tokens.reshape(flat))
        return nats.reshape(tokens.shape), correct.reshape(tokens.shape)

    def __call__(self, tokens: Int[Array, "B C L"], valid: Bool[Array, "B C L"] | None = None) -> Float[Array, "B C L V"]:
        """Logits of all chunks; position t scores token t.

        Args:
          tokens: ids, chunk by chunk.
          valid: False where a position is padding: it is masked, and a chunk of padding alone leaves the state as it was.
        """
        return self.head(self.hidden(tokens, valid))
