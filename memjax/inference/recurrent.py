"""A recurrent memory model that reads on: the tokens of the current chunk, and the state that earlier chunks left.

A chunk that is full is read once more with its write slots, which gives the next state. The state does not grow and nothing is ever
evicted. A decoder of another kind than a transformer reads its chunk again for every token.

Shapes: B row, C chunk before the current one, L token, K vector, D width, T = K + L positions (mixers: K + L + K).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memjax.inference.reader import Given, Params, Prompt, Reader, at_place, in_window
from memjax.layers.attention import KeyValues
from memjax.models import RecurrentMemory


@dataclasses.dataclass(frozen=True)
class RecurrentReader(Reader[RecurrentMemory]):
    """Reads on with recurrent memory; what is held is the state [B, K, D]."""

    @property
    def window(self) -> int:
        """A chunk."""
        return self.model.chunk_length

    @property
    def limit(self) -> None:
        """None."""

    @property
    def turned(self) -> int:
        """A new chunk has no tokens."""
        return 0

    def cut(self, prompt: np.ndarray) -> Prompt:
        """Its whole chunks and the rest."""
        border = len(prompt) - len(prompt) % self.window
        return Prompt(prompt[:border].reshape(-1, self.window), prompt[border:])

    def hold(self, params: Params, chunks: jax.Array, count: jax.Array, given: Given | None = None) -> jax.Array:
        """The state after each row's last whole chunk; one after another, in one call."""
        vectors, batch = self.model.vectors, count.shape[0]
        first_KD = self.apply(params, method=lambda module: module._first()).astype(jnp.dtype(self.model.dtype))
        first = jnp.broadcast_to(first_KD, (batch, *first_KD.shape))
        if not chunks.shape[1]:
            return first
        written_BCKD = self.apply(params, chunks, method="states")[:, :, -vectors:]
        last = jnp.take_along_axis(written_BCKD, jnp.maximum(count - 1, 0)[:, None, None, None], axis=1)[:, 0]
        return jnp.where((count > 0)[:, None, None], last, first)

    def open(
        self, params: Params, held: jax.Array, tokens: jax.Array, place: jax.Array, span: int
    ) -> tuple[jax.Array, KeyValues | None]:
        """The read slots and the chunk so far."""
        vectors = self.model.vectors

        def read(module: RecurrentMemory) -> tuple[jax.Array, Any]:
            # Nothing reads ahead, so that a transformer does without what is not there yet; a mixer's length is fixed.
            x = module.embed(tokens[:, :span] if self.cached else tokens)
            x = jnp.concatenate([held, x] if self.cached else [held, x, held], axis=1)
            positions = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
            valid = jnp.ones(x.shape[:2], bool)
            if not self.cached:
                return module.backbone(x, positions, valid), None
            states, cache = module.backbone.read(x, positions, valid)
            return states, in_window(cache, vectors + self.window)

        states, cache = self.apply(params, method=read)
        return at_place(states, vectors - 1 + place), cache

    def extend(
        self, params: Params, held: jax.Array, cache: KeyValues, token: jax.Array, place: jax.Array
    ) -> tuple[jax.Array, KeyValues]:
        """One position, which reads the read slots and the chunk's positions before it."""
        at = self.model.vectors - 1 + place
        valid = jnp.ones((len(place), self.model.vectors + self.window), bool)

        def step(module: RecurrentMemory) -> tuple[jax.Array, KeyValues]:
            return module.backbone.cached_step(module.embed(token[:, None])[:, 0], cache, at, at, valid)

        return self.apply(params, method=step)

    def turn(
        self, params: Params, held: jax.Array, tokens: jax.Array, place: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The state that the full chunk leaves."""

        def write(module: RecurrentMemory) -> jax.Array:
            all_B = jnp.ones(place.shape, bool)
            return module._chunk(held, module.embed(tokens), jnp.ones(tokens.shape, bool), all_B, jnp.array(False))[0]

        return self.apply(params, method=write), tokens, jnp.zeros_like(place)
