"""Recurrent memory transformer, of any backbone.

Source: Bulatov et al. 2022, arXiv 2207.06881; Badger 2026, baselines.

Chunks are read one after another by one backbone, and nothing but K vectors goes from a chunk to
the next. A chunk is the sequence

    [K read slots; L tokens; K write slots]

in which both kinds of slots are given the state. What the backbone returns at the write slots is
the next state; the first one is learned. The sequence is causal, so tokens see the read slots and
write slots see everything.

The last read slot scores the chunk's first token, and each token the one after it: every token is a
target, also the first, and every token is read by the memory, also the last. That needs no start
token.

Shapes: B row, C chunk of the row, L token, K vector, D width, V vocabulary, T = K + L + K positions
(1 + L as published).
"""

from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from memjax.config import Config, ConfigError, Model, Stage
from memjax.layers import Embed, Head, make_backbone
from memjax.models.adapter import PREDICTOR_QUIRKS, Adapter, Answers
from memjax.models.encoder import EMBEDDING_INIT, fold, require_places, unfold
from memjax.models.memory import CachedMemory, Memories, number_bits
from memjax.models.request import Asking, Request, Requests, Variables
from memjax.models.uses import Use, decoder_uses

STATE = "state"
"""The one leaf of a state."""


class RecurrentMemory(CachedMemory):
    """Token table, backbone and head over chunks in turn.

    The backbone is `config.decoder`, K is `config.memory_vectors`.

    With `config.bptt_chunks` = n > 0 the state that enters chunk n, 2n, 3n, ... is cut off from its
    past. A chunk's loss then reaches the chunks from the last such one to itself, so n at most; at
    n = 1 no loss reaches what was written. 0 cuts nothing.

    The quirk `overwritten_write_slot` puts the write slot over the chunk's last token, which is
    then read by nobody, masks nothing, and starts from a constant, ones in a transformer and zeros
    in a mixer (Badger 2026, published code). It needs K = 1, and its loss leaves out each chunk's
    first token.

    The weights fit any number of chunks.
    """

    KIND = "chain"

    @property
    def overwrites(self) -> bool:
        """Return whether the write slot replaces the last token."""
        return "overwritten_write_slot" in self.config.compat

    @property
    def length(self) -> int:
        """T: positions the backbone runs over."""
        return 2 * self.config.memory_vectors + self.config.chunk_length - self.overwrites

    def setup(self) -> None:
        config = self.config
        width, dtype = config.decoder.width, jnp.dtype(config.dtype)
        _check_write_slot(config)
        self.embed = Embed(self.vocab_size, width, dtype, EMBEDDING_INIT)
        if not self.overwrites:
            self.start = self.param("start", EMBEDDING_INIT, (config.memory_vectors, width))
        self.backbone = make_backbone(config, config.decoder, self.length)
        self.head = Head(width, self.vocab_size)

    def states(
        self, tokens: Int[Array, "B C L"], valid: Bool[Array, "B C L"] | None = None
    ) -> Float[Array, "B C T D"]:
        """Return the backbone's states at all positions; arguments as in `__call__`."""
        return self._read_chunks(self.empty(len(tokens)).leaves[STATE], tokens, valid)[0]

    def _read_chunks(
        self, state: jax.Array, tokens: jax.Array, valid: jax.Array | None
    ) -> tuple[Float[Array, "B C T D"], Float[Array, "B C K D"]]:
        """Return the backbone's states at all positions, and the state after every chunk."""
        require_places(tokens, self.config.chunk_length, 0)
        valid = jnp.ones(tokens.shape, bool) if valid is None or not self._masks else valid
        if self.overwrites:
            tokens, valid = tokens[..., :-1], valid[..., :-1]
        truncate, chunk = self.config.bptt_chunks, jnp.arange(tokens.shape[1])
        cut_C = (chunk > 0) & (chunk % truncate == 0) if truncate else jnp.zeros(chunk.shape, bool)
        scan = nn.scan(
            RecurrentMemory.read_chunk,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=(1, 1, 0),
            out_axes=1,
            # A second trace of the chunk, in which parameters are made that all chunks share.
            check_constancy_invariants=self.is_initializing(),
        )
        return scan(self, state, self.embed(tokens), valid, cut_C)[1]

    @property
    def _masks(self) -> bool:
        return not self.overwrites and "attended_padding" not in self.config.compat

    def read_chunk(
        self,
        state_BKD: jax.Array,
        x_BLD: jax.Array,
        valid_BL: jax.Array,
        cut: jax.Array | bool = False,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Return the state after one chunk, the backbone's states at all its positions, and again
        the state.

        `cut` stops the gradient to the state before.
        """
        vectors = self.config.memory_vectors
        state = jnp.where(cut, jax.lax.stop_gradient(state_BKD), state_BKD)
        valid = jnp.pad(valid_BL, ((0, 0), (vectors, vectors)), constant_values=True)
        # Positions count slots and real tokens, so that padding on the left does not shift them.
        h = self.backbone(jnp.concatenate([state, x_BLD, state], axis=1), valid=valid)
        # A chunk of padding alone writes nothing.
        after = jnp.where(valid_BL.any(axis=-1)[:, None, None], h[:, -vectors:], state)
        return after, (h, after)

    def token_states(
        self, tokens: Int[Array, "B C L"], valid: Bool[Array, "B C L"] | None = None
    ) -> Float[Array, "B C L D"]:
        """States that score: the one at t has read the chunk's tokens 0..t-1 and scores token t.

        It is taken where the last real token before t stands, or the last read slot, so that
        padding before t changes nothing.
        """
        return self._scoring(self.states(tokens, valid), tokens, valid)

    def _scoring(
        self, h_BCTD: jax.Array, tokens: jax.Array, valid: jax.Array | None
    ) -> Float[Array, "B C L D"]:
        first, length = self.config.memory_vectors - 1, tokens.shape[-1]
        if valid is None or not self._masks:
            return h_BCTD[:, :, first : first + length]
        at_L = jnp.arange(first, first + length)
        real_BCL = jnp.pad(valid[..., :-1], ((0, 0), (0, 0), (1, 0)), constant_values=True)
        at_BCL = jax.lax.cummax(jnp.where(real_BCL, at_L, first), axis=2)
        return jnp.take_along_axis(h_BCTD, at_BCL[..., None], axis=2)

    # The contract of models/memory.py.

    def empty(self, batch: int) -> Memories:
        """See `Memory.empty`; the learned state."""
        shape = batch, self.config.memory_vectors, self.config.decoder.width
        constant = 1.0 if self.config.decoder.kind == "transformer" else 0.0
        first = constant if self.overwrites else self.start
        state = jnp.broadcast_to(jnp.asarray(first, jnp.dtype(self.config.dtype)), shape)
        return Memories({STATE: state}, jnp.zeros(batch, jnp.int32), self.KIND)

    def fold(
        self,
        tokens: Int[Array, "B C L"],
        valid: Bool[Array, "B C L"] | None = None,
        state: Memories | None = None,
    ) -> Memories:
        """See `Memory.fold`; one chunk after another."""
        state = self.empty(len(tokens)) if state is None else state
        before = state.leaves[STATE]
        _, after = self._read_chunks(before, tokens, valid)
        states = jnp.concatenate([before[:, None], after], axis=1)
        return Memories({STATE: states}, state.count + tokens.shape[1], self.KIND)

    def at(self, prefixes: Memories, count: Int[Array, " B"]) -> Memories:
        """See `Memory.at`."""
        states = prefixes.leaves[STATE]
        before = prefixes.count - (states.shape[1] - 1)
        state = jnp.take_along_axis(
            states, (count - before)[:, None, None, None], axis=1, mode="clip"
        )
        return Memories({STATE: state[:, 0]}, count, self.KIND)

    def hidden(self, prefixes: Memories, request: Request) -> Float[Array, "B X L D"]:
        """See `Memory.hidden`; all decoded chunks in one call."""
        tokens = request.inputs
        state = fold(prefixes.leaves[STATE][:, np.asarray(request.visible)])
        shown = fold(tokens[..., :-1] if self.overwrites else tokens)
        _, (h, _) = self.read_chunk(state, self.embed(shown), jnp.ones(shown.shape, bool))
        return self._scoring(unfold(h, len(tokens)), tokens, None)

    def _chunk_inputs(
        self, state: Memories, tokens: Int[Array, "B L"]
    ) -> tuple[tuple[Float[Array, "B T D"], Int[Array, "B T"], Bool[Array, "B T"]], int]:
        # Nothing reads ahead, so a transformer needs no write slots; a mixer's length is fixed.
        before = state.leaves[STATE]
        after = [] if self.config.decoder.kind == "transformer" else [before]
        x = jnp.concatenate([before, self.embed(tokens), *after], axis=1)
        positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
        return (x, positions, jnp.ones(x.shape[:2], bool)), self.config.memory_vectors

    def _step_inputs(
        self, state: Memories, token: Int[Array, " B"], position: Int[Array, " B"]
    ) -> tuple[Float[Array, "B D"], Int[Array, " B"], Int[Array, " B"], Bool[Array, "B T"]]:
        vectors = self.config.memory_vectors
        at = vectors + position
        valid = jnp.ones((len(position), vectors + self.config.chunk_length), bool)
        return self.embed(token[:, None])[:, 0], at, at, valid

    def ledger(self, chunks: int) -> dict[str, tuple[int, int]]:
        """See `Memory.ledger`; the state is as large after any number of chunks."""
        config = self.config
        return {STATE: (config.memory_vectors * config.decoder.width, number_bits(config))}

    def score(
        self, tokens: Int[Array, "B C L"], valid: Bool[Array, "B C L"] | None = None
    ) -> tuple[Float[Array, "B C L"], Bool[Array, "B C L"]]:
        """Return nats of each token, and whether it is the most likely one.

        A token is given those before it in its chunk and the state.

        Never holds the logits.
        """
        return self.head.token_losses(self.token_states(tokens, valid), tokens)

    def __call__(
        self, tokens: Int[Array, "B C L"], valid: Bool[Array, "B C L"] | None = None
    ) -> Float[Array, "B C L V"]:
        """Logits of all chunks; position t scores token t.

        Args:
          tokens: ids, chunk by chunk.
          valid: False where a position is padding: it is masked, and a chunk of padding alone
            leaves the state as it was.
        """
        return self.head(self.token_states(tokens, valid))


def _answer(asking: Asking, variables: Variables, requests: Requests) -> Answers:
    """Run once over the sequence for all requests: every token is a target, none is inserted."""
    chunks = asking.chunks
    scored = asking.apply(variables, "score", chunks, chunks != asking.ids.pad)
    return dict.fromkeys(requests, scored)


def _uses(config: Config, stage: Stage, requests: Requests) -> Iterator[Use]:
    model = config.model
    positions = RecurrentMemory(model, config.chunks, config.data.vocab_size).length
    yield from decoder_uses(
        model.decoder, stage.batch_size * config.chunks, positions, model.chunk_length
    )


def _check_write_slot(model: Model) -> None:
    ConfigError.require(
        model.memory_vectors == 1 or "overwritten_write_slot" not in model.compat,
        "config.model.compat: overwritten_write_slot needs memory_vectors=1, not"
        f" {model.memory_vectors}: one token of a chunk is overwritten",
    )


ADAPTER = Adapter(
    name="recurrent_memory",
    module=RecurrentMemory,
    summary="A causal model that carries memory slots from chunk to chunk of a text.",
    capabilities=frozenset(("predicts", "reads_chunks", "starts_from_state", "keeps_state")),
    build=lambda config, stage: RecurrentMemory(
        config.model, config.chunks, config.data.vocab_size
    ),
    example=lambda config: jnp.zeros((1, config.chunks, config.model.chunk_length), jnp.int32),
    uses=_uses,
    answer=_answer,
    reads=PREDICTOR_QUIRKS | {"bptt_chunks", "overwritten_write_slot"},
    untied=("decoder",),
    check=lambda config, stage, key: _check_write_slot(config.model),
)
