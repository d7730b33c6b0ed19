"""A causal language model that reads on: all tokens so far, up to the length of the rows it was trained on.

A transformer keeps the keys and values of every position, a repeat mixer its running sums, which do not grow. A masked mixer keeps
nothing that would be less than its inputs and reads the window again for every token.

When the row is full the model goes on with its newer half, read again from a start token as a row of its own.

Shapes: B row, N position, W token of the window, D width.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memjax.config import REPEATS
from memjax.inference.reader import Given, Params, Prompt, Reader, at_place, in_window
from memjax.models import CausalLM


@dataclasses.dataclass(frozen=True)
class CausalReader(Reader[CausalLM]):
    """Reads on with a causal language model; of tokens that leave its window it keeps nothing."""

    @property
    def _shift(self) -> int:
        """Position of the first token."""
        return int(self.start is not None)

    @property
    def window(self) -> int:
        """The last position says one token more than is shown."""
        return self.module.length + 1 - self._shift

    @property
    def limit(self) -> int:
        """A row as in training, and the token after it where rows have no start token."""
        return self.window

    @property
    def turned(self) -> int:
        """The newer half; without a start token a window is never empty."""
        return max(self.module.length // 2, 1 - self._shift)

    @property
    def cached(self) -> bool:
        """Repeat mixers step as well."""
        return super().cached or self.stack.kind in REPEATS

    def cut(self, prompt: np.ndarray) -> Prompt:
        """Its last tokens, as many as the window would hold."""
        over = len(prompt) - self.window
        if over >= 0:
            prompt = prompt[len(prompt) - self.turned - over % (self.window - self.turned) :]
        return Prompt(np.zeros((0, 1), np.int32), prompt)

    def hold(self, params: Params, chunks: jax.Array, count: jax.Array, given: Given | None = None) -> None:
        """Nothing."""

    def open(self, params: Params, held: None, tokens: jax.Array, place: jax.Array, span: int) -> tuple[jax.Array, Any]:
        """The whole window in one call; a repeat mixer's running sums one position after another."""
        length = self.module.length
        shown = min(span + self._shift, length) if self.cached else length
        inputs = tokens[:, :length]
        if self.start is not None:
            inputs = jnp.concatenate([jnp.full_like(tokens[:, :1], self.start), tokens[:, : length - 1]], axis=1)
        inputs, at = inputs[:, :shown], place - 1 + self._shift
        if self.stack.kind in REPEATS:
            return self._sum_up(params, inputs, at)

        def read(module: CausalLM) -> tuple[jax.Array, Any]:
            x, positions = module.embed(inputs), jnp.broadcast_to(jnp.arange(shown), inputs.shape)
            valid = jnp.ones(inputs.shape, bool)
            if not self.cached:
                return module.backbone(x, positions, valid), None
            states, cache = module.backbone.read(x, positions, valid)
            return states, in_window(cache, length)

        states, cache = self.apply(params, method=read)
        return at_place(states, at), cache

    def _sum_up(self, params: Params, inputs: jax.Array, at: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A repeat mixer's state after position `at` of each row, and what it returns there."""
        batch = inputs.shape[0]
        x_NBD = jnp.moveaxis(self.apply(params, inputs, method=lambda module, ids: module.embed(ids)), 1, 0)
        state = self.apply(params, method=lambda module: module.backbone.initial_state(batch))

        def body(carry: tuple[jax.Array, jax.Array], xs: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
            (state, hidden), (position, x) = carry, xs
            new_hidden, new = self._step(params, x, state, position)
            read = (position <= at)[:, None]
            return (jnp.where(read[..., None, None], new, state), jnp.where(read, new_hidden, hidden)), None

        hidden = jnp.zeros((batch, self.stack.width), jnp.dtype(self.model.dtype))
        (state, hidden), _ = jax.lax.scan(body, (state, hidden), (jnp.arange(inputs.shape[1]), x_NBD))
        return hidden, state

    def _step(self, params: Params, x: jax.Array, state: jax.Array, position: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.apply(params, x, state, position, method=lambda module, *args: module.backbone.step(*args))

    def extend(self, params: Params, held: None, cache: Any, token: jax.Array, place: jax.Array) -> tuple[jax.Array, Any]:
        """One position, from the keys and values or the running sums of those before."""
        at, length = place - 1 + self._shift, self.module.length
        x = self.apply(params, token[:, None], method=lambda module, ids: module.embed(ids))[:, 0]
        if self.stack.kind in REPEATS:
            return self._step(params, x, cache, at)
        valid = jnp.ones((len(place), length), bool)
        return self.apply(params, x, cache, at, at, valid, method=lambda module, *args: module.backbone.cached_step(*args))

    def turn(self, params: Params, held: None, tokens: jax.Array, place: jax.Array) -> tuple[None, jax.Array, jax.Array]:
        """Leaves the newer half."""
        return None, jnp.roll(tokens, self.turned, axis=1), jnp.full_like(place, self.turned)
