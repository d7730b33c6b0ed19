"""Strategy of a causal language model: it reads all tokens so far, up to its training sequence
length.

A transformer keeps the keys and values of every position, a repeat mixer its running sums, which do
not grow. Masked mixers have no useful cache: the window is recomputed for each token.

When the sequence is full, the model continues with its newer half, read again after a start token
as a new sequence. For scores it reads the last tokens that fit into a sequence.

Shapes: B sequence or piece, N position, W token of the window, D width.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memjax.config import REPEATS
from memjax.inference.strategy import DecodingStrategy, Params, Piece, PrefixMemories, Prompt
from memjax.models import CausalLM
from memjax.models.memory import prefill_backbone


@dataclasses.dataclass(frozen=True)
class CausalStrategy(DecodingStrategy):
    """The strategy of a causal language model, which forgets tokens outside of its window."""

    @property
    def window(self) -> int:
        """Return the size of the window; the last position predicts one token more."""
        return self.module.length + 1 - self.shift

    @property
    def limit(self) -> int:
        """Return a sequence as in training, and the token after it if sequences have no start
        token.
        """
        return self.window

    @property
    def advanced(self) -> int:
        """Return the newer half; without a start token, the window is never empty."""
        return max(self.module.length // 2, 1 - self.shift)

    @property
    def cached(self) -> bool:
        """Return whether the window has a cache; repeat mixers have one too."""
        return super().cached or self.module.config.decoder.kind in REPEATS

    @property
    def needs_token(self) -> bool:
        """Return whether there is no start token."""
        return self.start is None

    def cut(self, prompt: np.ndarray) -> Prompt:
        """Return its last tokens, as many as fit into the window."""
        over = len(prompt) - self.window
        if over >= 0:
            prompt = prompt[len(prompt) - self.advanced - over % (self.window - self.advanced) :]
        return Prompt(np.zeros((0, 1), np.int32), prompt)

    def encode_context(
        self,
        params: Params,
        chunks: jax.Array,
        count: jax.Array,
        prefix: PrefixMemories | None = None,
    ) -> None:
        """Keep no context."""

    def prefill(
        self, params: Params, context: None, tokens: jax.Array, position: jax.Array, span: int
    ) -> tuple[jax.Array, Any]:
        """Read the whole window in one call; a repeat mixer's running sums one position after
        another.
        """
        inputs, at = self.inputs(tokens, span), position - 1 + self.shift
        if self.module.config.decoder.kind in REPEATS:
            return self._sum_up(params, inputs, at)

        def read(module: CausalLM) -> tuple[jax.Array, Any]:
            x, valid = module.embed(inputs), jnp.ones(inputs.shape, bool)
            positions = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
            return prefill_backbone(module.backbone, (x, positions, valid), at, self.length)

        return self.apply(params, method=read)

    def _sum_up(
        self, params: Params, inputs: jax.Array, at: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return a repeat mixer's state after position `at` per sequence, and its output there."""
        batch, length = inputs.shape
        state = self.apply(params, method=lambda module: module.backbone.initial_state(batch))

        def body(
            carry: tuple[jax.Array, jax.Array], xs: tuple[jax.Array, jax.Array]
        ) -> tuple[Any, None]:
            (state, hidden), (position, token) = carry, xs
            after = position + 1 - self.shift
            new_hidden, new = self.decode_step(params, None, state, token, after)
            read = (position <= at)[:, None]
            return (
                jnp.where(read[..., None, None], new, state),
                jnp.where(read, new_hidden, hidden),
            ), None

        hidden = jnp.zeros(
            (batch, self.module.config.decoder.width), jnp.dtype(self.module.config.dtype)
        )
        (state, hidden), _ = jax.lax.scan(body, (state, hidden), (jnp.arange(length), inputs.T))
        return hidden, state

    def decode_step(
        self, params: Params, context: None, cache: Any, token: jax.Array, position: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Compute one position from the keys and values, or the running sums, of those before."""
        at = position - 1 + self.shift
        x = self.apply(params, token[:, None], method=lambda module, ids: module.embed(ids))[:, 0]
        if self.module.config.decoder.kind in REPEATS:
            step = (x, cache, at)
            return self.apply(params, *step, method=lambda module, *xs: module.backbone.step(*xs))
        valid = jnp.ones((len(position), self.length), bool)
        return self.apply(
            params,
            x,
            cache,
            at,
            at,
            valid,
            method=lambda module, *args: module.backbone.cached_step(*args),
        )

    def advance_window(
        self, params: Params, context: None, tokens: jax.Array, position: jax.Array
    ) -> tuple[None, jax.Array, jax.Array]:
        """Keep the newer half."""
        return None, jnp.roll(tokens, self.advanced, axis=1), jnp.full_like(position, self.advanced)

    def pieces(self, context: np.ndarray, continuation: np.ndarray) -> list[Piece]:
        """Return disjoint windows of N scored tokens, each after as many tokens as fit into its
        sequence.
        """
        text, found = np.concatenate([context, continuation]), []
        for begin in range(len(context), len(text), self.length):
            end = min(begin + self.length, len(text))
            found.append(Piece(text[max(0, end - self.window) : end], end - begin))
        return found

    def reach(self, context: int, continuation: int) -> int:
        """Return the context tokens that fit into the sequence of the last window."""
        return max(0, min(context, self.window - continuation))

    def hidden(self, params: Params, batch: dict[str, Any]) -> jax.Array:
        """Compute states by one call of the module."""
        return self.apply(params, batch["inputs"], method="hidden")
